"""What the caller's own variable saves and loads, and what is left once the probes are gone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BuildTrainer, build_model, changed, weights
from huggingface_hub import HfApi
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from r2f_hf.runs.weights import full_state_dict


IDS = torch.arange(40)[None]
ADAPTER: dict[str, Any] = {"update_target": "adapter", "adapter_rank": 32}


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def load(folder: Path) -> dict[str, torch.Tensor]:
    """A saved model's weights, all of which have to be in the folder, and none else."""
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    return dict(model.state_dict())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "tied llama", "multimodal gemma", "qwen3_moe"])
def test_every_variable_saves_the_result(kind: str, tmp_path: Path, build_trainer: BuildTrainer) -> None:
    model = build_model(kind)
    trainer = build_trainer(model, exclude_modules=["experts"] if kind == "qwen3_moe" else None)
    trainer.train()
    result = {name: tensor.clone() for name, tensor in full_state_dict(trainer.model).items()}
    assert changed(build_model(kind).state_dict(), result)
    holders = {
        "handed in": model,
        "trainer's": trainer.model,
        "copied": copy.deepcopy(trainer.model),
        "copy of what was handed in": copy.deepcopy(model),
        "unloaded copy": copy.deepcopy(trainer.model).unload(),
        "merged copy": copy.deepcopy(trainer.model).merge_and_unload(),
    }
    for name, holder in holders.items():
        holder.save_pretrained(tmp_path / name, max_shard_size="20KB")
        assert not changed(result, load(tmp_path / name)), name
        assert len(list((tmp_path / name).glob("*.safetensors"))) > 1
        assert not list((tmp_path / name).glob("*adapter*"))
        assert list(holder.state_dict()) == list(result) and not changed(result, holder.state_dict()), name
    trainer.save_model()
    assert not changed(result, load(tmp_path / "output"))
    # All of it has left the trainer as it was.
    assert not changed(result, full_state_dict(trainer.model))
    trainer.evaluate()


@pytest.mark.parametrize("holder", ["handed in", "trainer's"])
def test_weights_are_given_back_by_the_names_they_were_taken_by(
    holder: str, model: PreTrainedModel, tmp_path: Path, build_trainer: BuildTrainer
) -> None:
    before = copy.deepcopy(model.state_dict())
    trainer = build_trainer(model)
    held = model if holder == "handed in" else trainer.model
    trainer.train()
    after = copy.deepcopy(held.state_dict())
    save_file(after, tmp_path / "after.safetensors")
    # From another model's, and back from a file.
    held.load_state_dict(before)
    assert not changed(before, full_state_dict(trainer.model))
    held.load_state_dict(load_file(tmp_path / "after.safetensors"))
    assert not changed(after, full_state_dict(trainer.model))
    plain = build_model(seed=1)
    plain.load_state_dict(held.state_dict())
    assert torch.equal(logits(plain), logits(trainer.model))
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "(base_model\.model\.)?lm_head.weight"'):
        held.load_state_dict({name: tensor for name, tensor in before.items() if name != "lm_head.weight"})


@pytest.mark.parametrize("holder", ["handed in", "trainer's"])
def test_the_result_is_what_is_pushed(
    holder: str, model: PreTrainedModel, tmp_path: Path, build_trainer: BuildTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the way to the Hub is cut off: what would be sent there is looked at."""
    sent: list[dict[str, bytes]] = []
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **kwargs: type("Repo", (), {"repo_id": repo_id}))
    monkeypatch.setattr(
        HfApi,
        "create_commit",
        lambda self, repo_id, operations, **kwargs: sent.append(
            {operation.path_in_repo: Path(operation.path_or_fileobj).read_bytes() for operation in operations}
        ),
    )
    trainer = build_trainer(model)
    trainer.train()
    (model if holder == "handed in" else trainer.model).push_to_hub("me/model")
    (files,) = sent
    (tmp_path / "pushed").mkdir()
    for name, content in files.items():
        (tmp_path / "pushed" / name).write_bytes(content)
    assert not changed(full_state_dict(trainer.model), load(tmp_path / "pushed"))


def test_a_whole_model_in_a_pickle_is_the_result(
    model: PreTrainedModel, tmp_path: Path, build_trainer: BuildTrainer
) -> None:
    trainer = build_trainer(model)
    trainer.train()
    result = {name: tensor.clone() for name, tensor in full_state_dict(trainer.model).items()}
    for held in (model, trainer.model):
        torch.save(held, tmp_path / "wrapped.pt")
        loaded = torch.load(tmp_path / "wrapped.pt", weights_only=False)
        assert torch.equal(logits(loaded), logits(model))
        # It saves as the one in memory does, and what it saves is its own.
        next(loaded.parameters()).data.add_(1)
        loaded.save_pretrained(tmp_path / "loaded")
        assert changed(result, load(tmp_path / "loaded")) == {"model.embed_tokens.weight"}
        assert not changed(result, model.state_dict())
    plain = trainer.model.unload()
    torch.save(plain, tmp_path / "plain.pt")
    assert b"r2f" not in (tmp_path / "plain.pt").read_bytes()
    loaded = torch.load(tmp_path / "plain.pt", weights_only=False)
    assert not changed(weights(plain), weights(loaded))


@pytest.mark.parametrize("kind", ["llama", "multimodal gemma"])
def test_a_part_of_the_model_is_saved_as_plain_too(kind: str, tmp_path: Path, build_trainer: BuildTrainer) -> None:
    model = build_model(kind)
    trainer = build_trainer(model)
    trainer.train()
    for name, part in [("all", model.model), ("decoder", model.get_decoder())]:
        part.save_pretrained(tmp_path / name)
        loaded, report = type(part).from_pretrained(tmp_path / name, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]
        assert not changed(loaded.state_dict(), part.state_dict())
    trainer.model.unload()
    assert not any("save_pretrained" in vars(module) for module in model.modules())


# With an adapter that takes the updates


def test_what_an_adapter_has_left_unchanged_is_not_saved_as_the_result(
    model: PreTrainedModel, tmp_path: Path, build_trainer: BuildTrainer
) -> None:
    before = weights(model)
    trainer = build_trainer(model, **ADAPTER)
    trainer.train()
    for save in (
        lambda: model.save_pretrained(tmp_path / "mine"),
        lambda: model.model.save_pretrained(tmp_path / "mine"),
        lambda: model.push_to_hub("me/model"),
    ):
        with pytest.raises(ValueError, match=r"as it was before unlearning.*trainer.save_model\(\)") as error:
            save()
    assert not (tmp_path / "mine").exists()
    # What it has in memory it gives and takes by plain names.
    assert list(model.state_dict()) == list(before) and not changed(before, model.state_dict())
    model.load_state_dict(before)
    # Both ways that it names lead to the result.
    now = logits(trainer.model)
    trainer.save_model()
    assert torch.allclose(logits(PeftModel.from_pretrained(build_model(), tmp_path / "output")), now, atol=1e-4)
    assert "trainer.model.merge_and_unload().save_pretrained(folder)" in str(error.value)
    trainer.model.save_pretrained(tmp_path / "theirs")
    assert [path.name for path in (tmp_path / "theirs").iterdir() if path.is_dir()] == ["r2f"]
    loaded = PeftModel.from_pretrained(build_model(), tmp_path / "theirs" / "r2f")
    assert torch.allclose(logits(loaded), now, atol=1e-4)
    trainer.model.merge_and_unload().save_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), now, atol=1e-3)
    assert changed(before, load(tmp_path / "merged"))
    # What is unloaded is a plain model like any other.
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.save_pretrained(tmp_path / "mine")
    assert not changed(weights(model), load(tmp_path / "mine"))


def test_a_users_adapter_is_saved_beside_the_one_that_took_the_updates(
    tmp_path: Path, build_trainer: BuildTrainer
) -> None:
    torch.manual_seed(3)
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    stacked = get_peft_model(build_model(), config)
    trainer = build_trainer(stacked, **ADAPTER)
    trainer.train()
    stacked.save_pretrained(tmp_path / "all")
    loaded = PeftModel.from_pretrained(build_model(), tmp_path / "all")
    loaded.load_adapter(tmp_path / "all" / "r2f", "r2f")
    loaded.base_model.set_adapter(["default", "r2f"])
    assert torch.allclose(logits(loaded), logits(stacked), atol=1e-4)
    assert not (tmp_path / "all" / "r2f_probe").exists()
    stacked.save_pretrained(tmp_path / "one", selected_adapters=["default"])
    assert not (tmp_path / "one" / "r2f").exists()


# One request after another


def test_what_required_a_gradient_does_so_again(model: PreTrainedModel, build_trainer: BuildTrainer) -> None:
    model.model.layers[0].requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for settings in ({}, ADAPTER):
        for take_off in ("unload", "merge_and_unload"):
            trainer = build_trainer(model, max_steps=1, overwrite_output_dir=True, **settings)
            assert not any(parameter.requires_grad for parameter in model.model.embed_tokens.parameters())
            trainer.train()
            assert getattr(trainer.model, take_off)() is model
            assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
            assert "save_pretrained" not in vars(model) and "state_dict" not in vars(model)


@pytest.mark.parametrize("settings", [{}, ADAPTER])
def test_the_variable_that_was_passed_can_be_fine_tuned_after_training(
    settings: dict[str, Any], model: PreTrainedModel, tmp_path: Path, build_trainer: BuildTrainer
) -> None:
    model.model.layers[0].mlp.requires_grad_(False)
    names = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    trainer = build_trainer(model, **settings)
    for _ in range(2):
        trainer.train()
        trainer.evaluate()
        frozen = {name.replace(".base_layer", "") for name, each in model.named_parameters() if not each.requires_grad}
        assert {name for name in frozen if "lora_" not in name} == names
        assert not any(each.requires_grad for name, each in model.named_parameters() if "lora_" in name)
    before = {name: tensor.clone() for name, tensor in full_state_dict(trainer.model).items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    assert changed(before, full_state_dict(trainer.model)) == before.keys() - names


def test_a_second_training_is_the_same_whether_or_not_weights_require_gradients(
    tmp_path: Path, build_trainer: BuildTrainer
) -> None:
    results = []
    for trainable in (True, False):
        model = build_model()
        trainer = build_trainer(model, output_dir=str(tmp_path / str(trainable)))
        trainer.train()
        model.requires_grad_(trainable)
        trainer.train()
        results.append(full_state_dict(trainer.model))
        # The optimizer has the probes alone.
        moved = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
        assert len(moved) == sum("lora_" in name for name, _ in model.named_parameters())
    assert not changed(*results)


@pytest.mark.parametrize("kind", ["plain", "to an adapter", "stacked"])
def test_a_setting_that_trainer_itself_refuses_leaves_the_model_as_it_was(
    kind: str, model: PreTrainedModel, build_trainer: BuildTrainer
) -> None:
    settings = {} if kind == "plain" else ADAPTER
    if kind == "stacked":
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with pytest.raises(ValueError, match="nowhere is not supported"):
        build_trainer(model, report_to="nowhere", **settings)
    assert all(parameter.requires_grad == was for parameter, was in before)
    assert len(list(model.parameters())) == len(before)
    parts = [model, model.base_model, model.get_base_model()] if kind == "stacked" else [model]
    assert not any("state_dict" in vars(part) or "unload" in vars(part) for part in parts)
    if kind == "stacked":
        assert model.active_adapters == ["default"] and list(model.peft_config) == ["default"]
    build_trainer(model, max_steps=1, **settings).train()


@pytest.mark.parametrize("between", ["unload", "nothing"])
def test_a_second_request_in_memory_is_as_after_a_reload(
    between: str, model: PreTrainedModel, tmp_path: Path, build_trainer: BuildTrainer
) -> None:
    first = build_trainer(model, output_dir=str(tmp_path / "one"))
    first.train()
    first.save_model()
    if between == "unload":
        model = first.model.unload()
    for name, again in (("two", model), ("three", AutoModelForCausalLM.from_pretrained(tmp_path / "one"))):
        # Other modules and another rank than before.
        trainer = build_trainer(
            again, output_dir=str(tmp_path / name), rank=6, target_modules=["up_proj"], seed=1, max_steps=2
        )
        trainer.train()
        trainer.save_model()
    second = load(tmp_path / "two")
    assert not changed(second, load(tmp_path / "three"))
    assert len(changed(second, load(tmp_path / "one"))) == 2
    model.save_pretrained(tmp_path / "mine")
    assert not changed(second, load(tmp_path / "mine"))


def test_updates_that_an_adapter_took_are_not_lost_in_a_second_request(
    model: PreTrainedModel, build_trainer: BuildTrainer
) -> None:
    first = build_trainer(model, **ADAPTER)
    # Nothing is in it yet: the same variable may be tried again.
    first = build_trainer(model, **ADAPTER)
    first.train()
    for settings in ({}, ADAPTER):
        with pytest.raises(ValueError, match=r"took the updates of another.*trainer.model.merge_and_unload"):
            build_trainer(model, overwrite_output_dir=True, **settings)
    now = logits(first.model)
    model = first.model.merge_and_unload()
    assert torch.allclose(logits(model), now, atol=1e-3)
    build_trainer(model, overwrite_output_dir=True).train()
