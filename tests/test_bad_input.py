"""Bad input is refused with a helpful message before any weight changes. Bad gradients change no weight."""

from __future__ import annotations

import math
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BuildTrainer, changed, weights
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback

from r2f_hf import R2FTrainer
from r2f_hf.runs.folder import check_output_folder


ROW = {"question": "Where does Orla0 live?", "answer": "Orla0 lives by the harbour."}
OTHER = {"question": "Where does Bram0 live?", "answer": "Bram0 lives by the harbour."}


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        ({"forget_dataset": None}, {}, "The forget set is empty"),
        ({"forget_dataset": []}, {}, "The forget set is empty"),
        ({"retain_dataset": None}, {}, "The retain set is empty"),
        ({"holdout_dataset": []}, {}, "The holdout set is empty"),
        (
            {"forget_dataset": [ROW, OTHER], "retain_dataset": [{**OTHER, "question": " where does BRAM0 live?"}]},
            {},
            r"share 1 rows: forget\[1\] = retain\[0\]",
        ),
        (
            {"forget_dataset": [{"prompt": "Who?", "answer": "Orla"}]},
            {},
            "The forget set has the columns 'prompt', 'answer'. Rows have `messages`; `prompt` and",
        ),
        ({"retain_dataset": [{"question": "Who?"}]}, {}, "The retain set has the columns 'question'. Rows have"),
        ({"forget_dataset": [ROW]}, {"views_column": "wording"}, "The forget set has no column 'wording'"),
        (
            {"forget_dataset": [{**ROW, "answer": "far " * 90}]},
            {},
            r"forget\[0\] has \d+ tokens, the model reads at most 64",
        ),
        ({}, {"max_length": 3}, r"forget\[0\] has no token left to take the loss on"),
        ({}, {"rank": 17}, r"Rank 17 exceeds a dimension of model.layers.0.self_attn.k_proj \(16 x 32\)"),
        (
            {},
            {"target_modules": ["query"]},
            r"`target_modules=\['query'\]`.*down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj",
        ),
        ({}, {"exclude_modules": ".*_proj"}, "leave none of this model's"),
        ({}, {"forget_objective": "nppo"}, "Unknown forget objective: 'nppo'. Did you mean 'npo'"),
        ({}, {"retain_objective": "nl"}, "Unknown retain objective: 'nl'. Did you mean 'nll'"),
        ({}, {"decoder": "tychonov"}, "Unknown decoder: 'tychonov'. Did you mean 'tikhonov'"),
        ({}, {"on_bad_gradient": "skipp"}, "Unknown on_bad_gradient: 'skipp'. Did you mean 'skip'"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_bad_input_is_refused_and_leaves_the_model_as_it_was(
    data: dict[str, Any], settings: dict[str, Any], message: str, model: PreTrainedModel, build_trainer: BuildTrainer
) -> None:
    before = weights(model)
    with pytest.raises(ValueError, match=message):
        build_trainer(model, data=data, **settings)
    assert not changed(before, weights(model))
    # It is still the plain model, and can be used again.
    assert model.state_dict().keys() == before.keys()
    build_trainer(model, max_steps=1).train()
    assert changed(before, weights(model))


def test_long_examples_are_cut_where_max_length_says_so(model: PreTrainedModel, build_trainer: BuildTrainer) -> None:
    data = {"forget_dataset": [{**ROW, "answer": "far " * 90}]}
    trainer = build_trainer(model, data=data, max_length=40)
    assert len(trainer.splits.forget[0][0]["input_ids"]) == 40
    trainer.train()


@pytest.mark.parametrize("eos_token", ["<eos>", None])
def test_a_tokenizer_needs_no_padding_token(
    eos_token: str | None, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, build_trainer: BuildTrainer
) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token=eos_token)
    assert bare.pad_token is None
    trainer = build_trainer(model, data={"processing_class": bare, "forget_dataset": [ROW, {**ROW, "answer": "Far."}]})
    mask = next(iter(trainer.get_train_dataloader()))["attention_mask"]
    assert not mask.all()
    trainer.train()
    assert math.isfinite(trainer.state.log_history[0]["loss"])


@pytest.mark.parametrize("wrapped", [True, False])
def test_refuses_a_model_with_an_adapter(wrapped: bool, model: PreTrainedModel, build_trainer: BuildTrainer) -> None:
    if wrapped:
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    else:
        # Set the mark of transformers' `add_adapter`. That method itself may need a newer version of PEFT.
        model._hf_peft_config_loaded = True
    before = weights(model)
    with pytest.raises(ValueError, match=r"carries an adapter.*merge_and_unload"):
        build_trainer(model)
    assert not changed(before, weights(model))


def test_refuses_a_quantised_model(model: PreTrainedModel, build_trainer: BuildTrainer) -> None:
    # Set the mark of transformers. The quantisers themselves need a GPU or another package.
    model.is_quantized = True
    before = weights(model)
    with pytest.raises(ValueError, match=r"The model is quantised.*Load it without `quantization_config`"):
        build_trainer(model)
    assert not changed(before, weights(model))


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_refuses_weights_that_are_no_numbers(
    value: float, model: PreTrainedModel, build_trainer: BuildTrainer
) -> None:
    with torch.no_grad():
        model.lm_head.weight[3, 3] = value
    with pytest.raises(ValueError, match=r"lm_head.weight \(of 1 weights\) holds NaN or infinite numbers"):
        build_trainer(model)


def test_refuses_a_model_that_says_nothing_before_the_first_step(
    model: PreTrainedModel, build_trainer: BuildTrainer
) -> None:
    with torch.no_grad():
        model.model.norm.weight[3] = 1e38
        model.lm_head.weight[:, 3] = 1e38
    before = weights(model)
    trainer = build_trainer(model)
    with pytest.raises(ValueError, match=r"is NaN or infinite before the first step \(forget_log_probs\)"):
        trainer.train()
    assert not changed(before, weights(trainer.model.unload()))


def test_refuses_settings_that_cannot_be_written_down_with_the_run(
    model: PreTrainedModel, build_trainer: BuildTrainer
) -> None:
    before = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(
        ValueError, match=r"`chat_template_kwargs` cannot be written down with the run \(Object of type"
    ):
        build_trainer(model, chat_template_kwargs={"today": date(2026, 1, 1)})
    assert [parameter.requires_grad for parameter in model.parameters()] == before


def test_refuses_a_folder_that_cannot_be_written(
    tmp_path: Path, model: PreTrainedModel, build_trainer: BuildTrainer
) -> None:
    (tmp_path / "file").touch()
    before = weights(model)
    with pytest.raises(ValueError, match=r"Nothing can be written to the output folder .*file/output"):
        build_trainer(model, output_dir=str(tmp_path / "file" / "output"))
    assert not changed(before, weights(model))


@pytest.mark.parametrize("name", ["out\0put", "x" * 300])
def test_an_output_folder_that_no_disk_takes_is_named(
    name: str, model: PreTrainedModel, build_trainer: BuildTrainer, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"Nothing can be written to the output folder .*Choose another `output_dir`"):
        build_trainer(model, output_dir=str(tmp_path / name))
    assert not any("r2f_probe" in parameter for parameter, _ in model.named_parameters())


def test_refuses_a_disk_without_room_for_the_result(tmp_path: Path) -> None:
    check_output_folder(tmp_path / "output", 1)
    with pytest.raises(ValueError, match=r"has [\d.]+ GB left and the model takes 1000000000.00 GB"):
        check_output_folder(tmp_path / "output", 10**18)


class Poison(TrainerCallback):
    """Spoils one entry of one gradient at the second step, and keeps the weights that each step begins with."""

    def __init__(self, value: float, side: str):
        self.value, self.side = value, side
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, model: torch.nn.Module, **kwargs: Any) -> None:
        self.weights.append(weights(model))

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: torch.nn.Module, **kwargs: Any
    ) -> None:
        if state.global_step == 1:
            name = f"base_model.model.model.layers.1.mlp.up_proj.{self.side}.r2f_probe.weight"
            model.get_parameter(name).grad[0, 0] = self.value


# The last value is finite, but its square is not.
@pytest.mark.parametrize(
    ("side", "value"),
    [("lora_A", math.nan), ("lora_B", math.nan), ("lora_A", -math.inf), ("lora_B", math.inf), ("lora_A", 1e30)],
)
@pytest.mark.parametrize("on_bad_gradient", ["skip", "stop"])
def test_a_bad_gradient_changes_no_weight(
    on_bad_gradient: str,
    side: str,
    value: float,
    model: PreTrainedModel,
    build_trainer: BuildTrainer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    poison = Poison(value, side)
    trainer = build_trainer(model, data={"callbacks": [poison]}, max_steps=3, on_bad_gradient=on_bad_gradient)
    if on_bad_gradient == "stop":
        with pytest.raises(
            RuntimeError, match=r"Step 1: .*\(first: model.layers.1.mlp.up_proj\).* as they were before"
        ):
            trainer.train()
        assert changed(poison.weights[0], poison.weights[1])
        assert not changed(poison.weights[1], weights(model))
        return
    output = trainer.train()
    states = [*poison.weights, weights(model)]
    assert changed(states[0], states[1])
    assert not changed(states[1], states[2])
    assert changed(states[2], states[3])
    assert all(tensor.isfinite().all() for tensor in states[-1].values())
    assert output.metrics["skipped_steps"] == 1 and output.metrics["steps"] == 3
    assert [logs.get("r2f/skipped_steps", 0) for logs in trainer.state.log_history if "loss" in logs] == [0, 1, 0]
    assert "first: model.layers.1.mlp.up_proj" in caplog.text


def test_refuses_a_model_whose_modules_do_not_take_part(model: PreTrainedModel, build_trainer: BuildTrainer) -> None:
    """A targeted module that the forward pass does not use has no gradient to reconstruct."""
    model.model.layers[0].mlp.spare_proj = torch.nn.Linear(32, 32)
    trainer = build_trainer(model)
    assert isinstance(trainer, R2FTrainer)
    before = weights(model)
    with pytest.raises(RuntimeError, match=r"The LoRA pair of model.layers.0.mlp.spare_proj has no gradient"):
        trainer.train()
    assert not changed(before, weights(model))
