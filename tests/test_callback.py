"""R2FCallback in Trainers that know nothing of it: transformers' own and TRL's SFTTrainer."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from conftest import build_model, changed, distance, weights
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from r2f_hf import R2FCallback
from r2f_hf.callback import STEP_FILE
from r2f_hf.decoders import MlpDecoder, load_decoder
from r2f_hf.gradients import LoraSketch
from r2f_hf.probes import draw_probes, find_probes, group_probes
from r2f_hf.updates import SecondMoments
from r2f_hf.updates.targets import AdapterTarget


# Norm of a step over all 8 modules together.
STEP = 0.25
LR = STEP / 8**0.5
RANK = 8
SETTINGS: dict[str, Any] = {
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "optim": "sgd",
    "lr_scheduler_type": "constant",
    "learning_rate": LR,
    "logging_steps": 1,
    "max_steps": 1,
    "per_device_train_batch_size": 4,
}
MODULES = ["q_proj", "o_proj", "up_proj", "down_proj"]


def wrap(model: PreTrainedModel, **settings: Any) -> PeftModel:
    return get_peft_model(
        model, LoraConfig(**{"r": RANK, "lora_alpha": 1e-6 * RANK, "target_modules": MODULES} | settings)
    )


@pytest.fixture
def examples(tokenizer: PreTrainedTokenizerFast, retain_rows: list[dict[str, object]]) -> list[dict[str, list[int]]]:
    """Tokenized texts of one length, which Trainer's default collator can stack."""
    ids = [tokenizer(f"{row['question']} {row['answer']}")["input_ids"] for row in retain_rows]
    shortest = min(map(len, ids))
    return [{"input_ids": row[:shortest], "labels": row[:shortest]} for row in ids]


BuildPlainTrainer = Callable[..., Trainer]


@pytest.fixture
def plain_trainer(tmp_path: Path, examples: list[dict[str, list[int]]]) -> BuildPlainTrainer:
    def build(
        model: PreTrainedModel | PeftModel,
        callback: R2FCallback,
        optimizer: torch.optim.Optimizer | None = None,
        callbacks: tuple[TrainerCallback, ...] = (),
        **settings: Any,
    ) -> Trainer:
        return Trainer(
            model,
            TrainingArguments(str(tmp_path / "output"), **SETTINGS | settings),
            train_dataset=examples,
            callbacks=[callback, *callbacks],
            optimizers=(optimizer, None),
        )

    return build


def full_gradients(model: PreTrainedModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Autograd's gradient of every targeted weight, by module name."""
    model = copy.deepcopy(model).requires_grad_(True)
    model(**batch).loss.backward()
    return {name: module.weight.grad for name, module in model.named_modules() if name.rsplit(".", 1)[-1] in MODULES}


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_one_step_follows_the_gradient_that_autograd_computes(
    kind: str, adaptive: bool, plain_trainer: BuildPlainTrainer
) -> None:
    original = build_model(kind)
    model = wrap(copy.deepcopy(original))
    held_out, seed = 2, 5
    trainer = plain_trainer(model, R2FCallback(seed=seed, held_out=held_out, adaptive=adaptive))
    batch = next(iter(trainer.get_train_dataloader()))
    truth = full_gradients(original, batch)
    trainer.train()

    decoded = {}
    for name, G in truth.items():
        A, B = draw_probes(seed, 0, name, *G.shape, RANK)
        gradient = load_decoder("spectral").decode(LoraSketch(Y=G @ A.T, Z=B.T @ G, A=A, B=B, held_out=held_out))
        if adaptive:
            gradient = SecondMoments.after(gradient, None).scale(gradient)
        decoded[f"{name}.weight"] = gradient.U @ gradient.V.T
    before, after = weights(original), weights(model)
    assert changed(before, after) == decoded.keys()
    assert distance(before, after) == pytest.approx(STEP, rel=1e-4)
    for name, gradient in decoded.items():
        torch.testing.assert_close(
            after[name], before[name] - LR * gradient / gradient.norm(), atol=2e-5 * STEP, rtol=1e-5
        )
    cosines = [
        torch.cosine_similarity(
            (before[name] - after[name]).flatten(), truth[name.removesuffix(".weight")].flatten(), dim=0
        )
        for name in decoded
    ]
    assert torch.stack(cosines).mean() > (0.4 if adaptive else 0.7)


@pytest.mark.parametrize("normalize", [True, False])
def test_a_module_without_a_gradient_is_left_alone(normalize: bool, plain_trainer: BuildPlainTrainer) -> None:
    original = build_model()
    model = wrap(copy.deepcopy(original))
    alone = "model.layers.0.self_attn.q_proj"
    for name, parameter in model.named_parameters():
        if f"{alone}.lora" in name:
            parameter.register_hook(torch.zeros_like)
    callback = R2FCallback(normalize=normalize)
    plain_trainer(model, callback).train()
    before, after = weights(original), weights(model)
    others = callback.module_fidelity.keys() - {alone}
    assert len(others) == len(callback.module_fidelity) - 1
    assert changed(before, after) == {f"{name}.weight" for name in others}
    assert all(tensor.isfinite().all() for tensor in after.values())
    if normalize:
        lengths = [(after[f"{name}.weight"] - before[f"{name}.weight"]).norm().item() for name in others]
        assert lengths == pytest.approx([LR] * len(others), rel=1e-3)


class Watch(TrainerCallback):
    """Keeps the probes and the weights that each step begins with, and the logs."""

    def __init__(self) -> None:
        self.probes: list[Tensor] = []
        self.weights: list[dict[str, Tensor]] = []
        self.logs: list[dict[str, float]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, model: PeftModel, **kwargs: Any) -> None:
        pairs = [parameter.detach().flatten() for name, parameter in model.named_parameters() if "lora_" in name]
        self.probes.append(torch.cat(pairs))
        self.weights.append(weights(model))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        self.logs.append(dict(logs))


@pytest.mark.parametrize(("scheduler", "factors"), [("constant", [1, 1, 1, 1]), ("linear", [1, 0.75, 0.5, 0.25])])
def test_each_step_draws_new_probes_and_has_the_length_that_the_scheduler_says(
    scheduler: str, factors: list[float], model: PreTrainedModel, plain_trainer: BuildPlainTrainer
) -> None:
    watch, callback = Watch(), R2FCallback(warm_probes=False)
    trainer = plain_trainer(wrap(model), callback, callbacks=(watch,), max_steps=4, lr_scheduler_type=scheduler)
    trainer.train()
    lengths = [distance(*pair) for pair in itertools.pairwise([*watch.weights, weights(model)])]
    assert lengths == pytest.approx([STEP * factor for factor in factors], rel=1e-4)
    correlation = torch.corrcoef(torch.stack(watch.probes))
    torch.testing.assert_close(correlation, torch.eye(4), atol=0.1, rtol=0)

    losses = [logs for logs in trainer.state.log_history if "loss" in logs]
    assert [logs["r2f/fidelity"] for logs in losses] == callback.fidelities
    assert all(0 < logs["r2f/fidelity"] <= 1 and 0 < logs["r2f/relative_error"] < 1 for logs in losses)
    # Callbacks that come after R2FCallback see it too.
    assert [logs["r2f/fidelity"] for logs in watch.logs if "loss" in logs] == callback.fidelities
    assert callback.summary()["fidelity"] == pytest.approx(sum(callback.fidelities) / 4)


def test_warm_probes_see_more_of_the_gradient_than_blind_ones(plain_trainer: BuildPlainTrainer) -> None:
    fidelity = {}
    for warm in (False, True):
        callback = R2FCallback(warm_probes=warm)
        plain_trainer(wrap(build_model()), callback, max_steps=12, learning_rate=1e-3).train()
        fidelity[warm] = sum(callback.fidelities[1:]) / 11
    assert fidelity[True] > fidelity[False] + 0.02


def test_modules_below_the_least_fidelity_are_left_alone(plain_trainer: BuildPlainTrainer) -> None:
    original = build_model()
    measured = R2FCallback()
    plain_trainer(wrap(copy.deepcopy(original)), measured).train()
    least = sorted(found.cosine for found in measured.module_fidelity.values())[3]

    callback = R2FCallback(min_fidelity=least)
    model = wrap(copy.deepcopy(original))
    trainer = plain_trainer(model, callback)
    trainer.train()
    low = {f"{name}.weight" for name, found in callback.module_fidelity.items() if found.cosine < least}
    targeted = {f"{name}.weight" for name in callback.module_fidelity}
    assert len(low) == 3 < len(targeted)
    before, after = weights(original), weights(model)
    assert changed(before, after) == targeted - low
    # The steps of the other modules do not grow because of this.
    plain = wrap(copy.deepcopy(original))
    plain_trainer(plain, R2FCallback()).train()
    for name in targeted - low:
        torch.testing.assert_close(after[name], weights(plain)[name])
    assert distance(before, after) < 0.99 * STEP
    logs = trainer.state.log_history[0]
    assert logs["r2f/low_fidelity_modules"] == len(low)
    assert logs["r2f/fidelity_min"] == pytest.approx(min(found.cosine for found in callback.module_fidelity.values()))


def test_a_run_can_stop_at_low_fidelity_with_its_weights_as_they_were(plain_trainer: BuildPlainTrainer) -> None:
    original = build_model()
    model = wrap(copy.deepcopy(original))
    callback = R2FCallback(min_fidelity=0.999, on_bad_gradient="stop")
    trainer = plain_trainer(model, callback)
    with pytest.raises(RuntimeError, match=r"below min_fidelity=0.999: model.layers.* Raise `rank`, take more"):
        trainer.train()
    assert not changed(weights(original), weights(model))
    # It leaves nothing on the adapter, on the optimizer, or in the logs of a later run.
    assert not any(probe.layer.lora_variant for probe in find_probes(model))
    trainer.optimizer.step()
    assert not changed(weights(original), weights(model))
    callback.options["min_fidelity"] = None
    trainer.train()
    assert distance(weights(original), weights(model)) == pytest.approx(STEP, rel=1e-4)
    assert "r2f/low_fidelity_modules" not in trainer.state.log_history[0]


def test_a_run_in_which_nothing_is_faithful_says_so(
    plain_trainer: BuildPlainTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    original = build_model()
    model, callback = wrap(copy.deepcopy(original)), R2FCallback(min_fidelity=0.99999)
    plain_trainer(model, callback, max_steps=2).train()
    assert not changed(weights(original), weights(model))
    assert callback.summary()["skipped_steps"] == 2
    assert "no module reaches min_fidelity=0.99999" in caplog.text


def test_a_decoder_that_needs_its_own_probes_is_refused() -> None:
    with pytest.raises(ValueError, match="MlpDecoder knows only the probes that it was trained with"):
        R2FCallback(decoder=MlpDecoder(8, 8, 2))


def test_the_adapter_leaves_the_forward_pass_as_it_is(
    model: PreTrainedModel, plain_trainer: BuildPlainTrainer
) -> None:
    wrapped = wrap(model)
    trainer = plain_trainer(wrapped, R2FCallback())
    trainer.train()
    for group in group_probes(find_probes(wrapped)):
        group.draw(seed=0, step=1)
    batch = next(iter(trainer.get_train_dataloader()))
    pairs = torch.cat([parameter.flatten() for name, parameter in wrapped.named_parameters() if "lora_B" in name])
    assert pairs.abs().max() > 0.1
    with torch.no_grad():
        logits = wrapped(**batch).logits
        with wrapped.disable_adapter():
            alone = wrapped(**batch).logits
    torch.testing.assert_close(logits, alone, atol=1e-4, rtol=1e-5)


def test_what_is_left_is_an_empty_adapter_over_the_result(
    model: PreTrainedModel, plain_trainer: BuildPlainTrainer, tmp_path: Path
) -> None:
    trainer = plain_trainer(wrap(model), R2FCallback())
    trainer.train()
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        logits = trainer.model(**batch).logits
        assert not any(parameter.any() for name, parameter in trainer.model.named_parameters() if "lora_B" in name)
        trainer.model.unload().save_pretrained(tmp_path / "result")
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "result")
        torch.testing.assert_close(loaded.eval()(**batch).logits, logits, atol=1e-6, rtol=1e-6)


def load(folder: Path) -> dict[str, Tensor]:
    """A saved model's weights, all of which have to be in the folder, and none else."""
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    return weights(model)


@pytest.mark.parametrize("save_full_model", [True, False])
def test_every_variable_saves_the_result(
    save_full_model: bool, model: PreTrainedModel, plain_trainer: BuildPlainTrainer, tmp_path: Path
) -> None:
    before, names = weights(model), list(model.state_dict())
    wrapped = wrap(model)
    callback = R2FCallback(save_full_model=save_full_model)
    trainer = plain_trainer(wrapped, callback, max_steps=2, save_strategy="steps", save_steps=1)
    # An empty adapter in its place would be the model from before.
    trainer.save_model(str(tmp_path / "saved by the trainer"))
    trainer.train()
    checkpoint = {path.name for path in (tmp_path / "output" / "checkpoint-1").iterdir()}
    assert "adapter_config.json" in checkpoint and not {"config.json", "model.safetensors"} & checkpoint
    result = weights(wrapped)
    assert distance(before, result) > STEP
    trainer.save_model(str(tmp_path / "saved by the trainer"))
    model.save_pretrained(tmp_path / "saved by the variable that was wrapped")
    model.model.save_pretrained(tmp_path / "part")
    trainer.model.save_pretrained(tmp_path / "saved by the PEFT model")
    copy.deepcopy(trainer.model).unload().save_pretrained(tmp_path / "unloaded")
    for folder in tmp_path.glob("*aved by*"):
        assert not changed(result, load(folder)), folder.name
    assert not changed(result, load(tmp_path / "unloaded"))
    assert list(model.state_dict()) == names and not changed(result, model.state_dict())
    _, report = AutoModel.from_pretrained(tmp_path / "part", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]


def test_a_run_that_was_interrupted_saves_what_it_has(
    model: PreTrainedModel, plain_trainer: BuildPlainTrainer, tmp_path: Path
) -> None:
    class Interrupts(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                raise KeyboardInterrupt

    watch = Watch()
    trainer = plain_trainer(wrap(model), R2FCallback(), callbacks=(watch, Interrupts()), max_steps=4)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.save_model(str(tmp_path / "result"))
    assert not changed(watch.weights[2], load(tmp_path / "result"))
    torch.save(model, tmp_path / "model.pt")
    torch.load(tmp_path / "model.pt", weights_only=False).save_pretrained(tmp_path / "loaded")
    assert not changed(watch.weights[2], load(tmp_path / "loaded"))


def test_what_a_trainer_has_gathered_is_saved_only_whole(
    model: PreTrainedModel, plain_trainer: BuildPlainTrainer, tmp_path: Path
) -> None:
    """DeepSpeed gives Trainer a state dict: all of it, or under ZeRO-3 only what is trained."""
    trainer = plain_trainer(wrap(model), R2FCallback())
    trainer.train()
    state = type(trainer.model).state_dict(trainer.model)
    trainer._save(str(tmp_path / "result"), state_dict=state)
    assert not changed(weights(trainer.model), load(tmp_path / "result"))
    trained = {name: tensor for name, tensor in state.items() if "lora_" in name}
    with pytest.raises(ValueError, match=r"spread over the processes. Call `save_full_model\(trainer.model, folder"):
        trainer._save(str(tmp_path / "other"), state_dict=trained)


@pytest.mark.parametrize(("settings", "rate"), [({"learning_rate": 5e-5}, "5e-05"), ({"learning_rate": 0.0}, "0")])
@pytest.mark.parametrize("scheduler", ["constant", "constant_with_warmup"])
def test_the_rate_of_a_fine_tuning_recipe_is_pointed_out(
    settings: dict[str, Any],
    rate: str,
    scheduler: str,
    model: PreTrainedModel,
    plain_trainer: BuildPlainTrainer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain_trainer(wrap(model), R2FCallback(), lr_scheduler_type=scheduler, warmup_steps=1, **settings).train()
    assert f"A learning rate of {rate} will hardly change anything" in caplog.text
    assert "Set `learning_rate` to about 0.15" in caplog.text


def test_a_usual_rate_is_not_pointed_out(
    model: PreTrainedModel, plain_trainer: BuildPlainTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    wrapped = wrap(model)
    # With an optimizer of one's own, that of the settings does not count.
    optimizer = torch.optim.SGD((p for p in wrapped.parameters() if p.requires_grad), lr=LR)
    settings = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 1, "learning_rate": 5e-5}
    plain_trainer(wrapped, R2FCallback(), optimizer, **settings).train()
    assert "learning rate" not in caplog.text


def test_a_learning_rate_of_zero_writes_nothing(model: PreTrainedModel, plain_trainer: BuildPlainTrainer) -> None:
    before = weights(model)
    wrapped = wrap(model)
    plain_trainer(wrapped, R2FCallback(), learning_rate=0.0).train()
    assert not changed(before, weights(wrapped))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_sft_trainer_steps_the_base_weights(
    checkpointing: bool,
    tmp_path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    retain_rows: list[dict[str, object]],
) -> None:
    rows = [{"prompt": row["question"], "completion": f" {row['answer']}"} for row in retain_rows]
    settings = SETTINGS | {"bf16": False, "gradient_checkpointing": checkpointing, "max_steps": 8}
    before = weights(model)
    wrapped = wrap(model)
    callback = R2FCallback()
    trainer = SFTTrainer(
        wrapped,
        SFTConfig(str(tmp_path), **settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    trainer.train()
    assert {name.rsplit(".", 2)[-2] for name in changed(before, weights(wrapped))} == set(MODULES)
    losses = [logs["loss"] for logs in trainer.state.log_history if "loss" in logs]
    assert losses[-1] < losses[0] - 0.5
    assert len(callback.fidelities) == 8
    assert sum(callback.fidelities) / 8 > 0.3


class ReleasingSGD(torch.optim.SGD):
    """
    Releases the gradients before `step` returns, as DeepSpeed and FSDP do.

    Like any optimizer that extends another, it makes PyTorch run the step's hooks twice: the parent's `step` is hooked
    as well.
    """

    def step(self, closure: Any = None) -> None:
        super().step(closure)
        self.zero_grad(set_to_none=True)


class SeesNoGradient(TrainerCallback):
    """What a callback on `on_optimizer_step`, the obvious place, would have to work with."""

    found = True

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: PeftModel, **kwargs: Any) -> None:
        self.found = any(parameter.grad is not None for parameter in model.parameters())


def test_gradients_are_read_inside_the_optimizer_step(plain_trainer: BuildPlainTrainer) -> None:
    results = []
    for optimizer_class in (torch.optim.SGD, ReleasingSGD):
        model = wrap(build_model())
        sees_no_gradient = SeesNoGradient()
        optimizer = optimizer_class((p for p in model.parameters() if p.requires_grad), lr=LR)
        trainer = plain_trainer(model, R2FCallback(), optimizer, (sees_no_gradient,), max_steps=2)
        trainer.train()
        results.append(weights(model))
    assert not sees_no_gradient.found
    assert distance(weights(build_model()), results[0]) > STEP
    assert not changed(*results)


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor"])
def test_the_optimizer_of_the_probes_does_not_matter(optim: str, plain_trainer: BuildPlainTrainer) -> None:
    results = []
    for name in ("sgd", optim):
        model = wrap(build_model())
        plain_trainer(model, R2FCallback(), optim=name, max_steps=3).train()
        results.append(weights(model))
    assert not changed(*results)


def test_the_hooks_are_gone_after_training(model: PreTrainedModel, plain_trainer: BuildPlainTrainer) -> None:
    wrapped = wrap(model)
    trainer = plain_trainer(wrapped, R2FCallback())
    trainer.train()
    before = weights(wrapped)
    trainer.optimizer.step()
    assert not changed(before, weights(wrapped))


def test_a_checkpoint_holds_the_full_model_and_training_resumes_from_it(
    tmp_path: Path, plain_trainer: BuildPlainTrainer
) -> None:
    checkpoint = tmp_path / "output" / "checkpoint-2"
    whole = wrap(build_model())
    settings = {"max_steps": 5, "lr_scheduler_type": "linear", "save_strategy": "steps", "save_steps": 2}
    watch = Watch()
    plain_trainer(whole, R2FCallback(), callbacks=(watch,), **settings).train()
    saved = weights(AutoModelForCausalLM.from_pretrained(checkpoint / "full_model"))
    assert not changed(watch.weights[2], saved)

    resumed = wrap(build_model())
    plain_trainer(resumed, R2FCallback(), **settings).train(resume_from_checkpoint=str(checkpoint))
    assert not changed(weights(whole), weights(resumed))


def test_a_checkpoint_without_a_schedule_is_refused(tmp_path: Path, plain_trainer: BuildPlainTrainer) -> None:
    settings = {"max_steps": 2, "lr_scheduler_type": "linear", "save_strategy": "steps", "save_steps": 1}
    plain_trainer(wrap(build_model()), R2FCallback(), save_only_model=True, **settings).train()
    again = wrap(build_model())
    with pytest.raises(ValueError, match=r"saved with `save_only_model`.*the learning rate would start at its height"):
        plain_trainer(again, R2FCallback(), **settings).train(
            resume_from_checkpoint=str(tmp_path / "output" / "checkpoint-1")
        )
    assert not changed(weights(build_model()), weights(again))


def test_saving_the_full_model_can_be_left_out(
    tmp_path: Path, model: PreTrainedModel, plain_trainer: BuildPlainTrainer
) -> None:
    plain_trainer(wrap(model), R2FCallback(save_full_model=False), save_strategy="steps", save_steps=1).train()
    names = {path.name for path in (tmp_path / "output" / "checkpoint-1").iterdir()}
    assert "adapter_config.json" in names
    assert "full_model" not in names


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (None, TypeError, "needs a PEFT model with a LoRA adapter, got LlamaForCausalLM"),
        ({"use_dora": True}, ValueError, "no DoRA"),
        ({"lora_dropout": 0.1}, ValueError, "lora_dropout=0.0"),
        ({"bias": "all"}, ValueError, 'bias="none"'),
        ({"modules_to_save": ["lm_head"]}, ValueError, "no `modules_to_save`"),
        ({"target_modules": ["embed_tokens"]}, ValueError, "embed_tokens is a Embedding"),
        ({"r": 33}, ValueError, "Rank 33 exceeds a dimension of model.layers.0.self_attn.q_proj"),
        ({"r": 2}, ValueError, "held_out=2 leaves no row"),
    ],
)
def test_refuses_what_cannot_serve_as_a_probe(
    settings: dict[str, Any] | None,
    error: type[Exception],
    message: str,
    model: PreTrainedModel,
    plain_trainer: BuildPlainTrainer,
) -> None:
    before = weights(model)
    wrapped = model if settings is None else wrap(model, **settings)
    with pytest.raises(error, match=message):
        plain_trainer(wrapped, R2FCallback()).train()
    after = weights(wrapped)
    # PEFT renames the weights of `modules_to_save`, and adds DoRA's magnitudes. The model's own are still among them.
    assert all(any(torch.equal(old, new) for new in after.values()) for old in before.values())


def test_refuses_a_weight_that_is_the_embeddings_too(plain_trainer: BuildPlainTrainer) -> None:
    config = build_model().config
    config.tie_word_embeddings = True
    tied = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match="lm_head shares its weight with the input embeddings"):
        plain_trainer(wrap(tied, target_modules=["lm_head"]), R2FCallback()).train()


def test_refuses_to_load_the_best_model_whose_adapter_alone_would_be_reloaded(
    model: PreTrainedModel, plain_trainer: BuildPlainTrainer, examples: list[dict[str, list[int]]]
) -> None:
    trainer = plain_trainer(wrap(model), R2FCallback())
    trainer.args.load_best_model_at_end = True
    with pytest.raises(ValueError, match="Use R2FTrainer, which reloads the full model"):
        trainer.train()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decoder": "tikonov"}, "Unknown decoder: 'tikonov'. Did you mean 'tikhonov'"),
        ({"on_bad_gradient": "stopp"}, "Unknown on_bad_gradient: 'stopp'. Did you mean 'stop'"),
    ],
)
def test_suggests_the_nearest_name(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        R2FCallback(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight_decay": 0.1}, "`weight_decay` would act on the probes"),
        ({"optim": "adalomo"}, "`optim='adalomo'` uses up each gradient in the backward pass"),
        ({"auto_find_batch_size": True}, "`auto_find_batch_size` begins a run anew"),
        ({"bf16_full_eval": True}, "`bf16_full_eval` rounds the model itself"),
    ],
)
def test_what_the_probes_cannot_have_is_refused_in_any_trainer(
    settings: dict[str, Any], message: str, model: PreTrainedModel, plain_trainer: BuildPlainTrainer
) -> None:
    before = weights(model)
    wrapped = wrap(model)
    optimizer = torch.optim.SGD((p for p in wrapped.parameters() if p.requires_grad), lr=LR)
    with pytest.raises(ValueError, match=message):
        plain_trainer(wrapped, R2FCallback(), optimizer, **settings).train()
    assert not changed(before, weights(wrapped))


def test_a_probe_is_not_uploaded_as_a_result(model: PreTrainedModel, plain_trainer: BuildPlainTrainer) -> None:
    trainer = plain_trainer(wrap(model), R2FCallback())
    # Where it is set from the beginning, the repository comes first, and needs the Hub.
    trainer.args.push_to_hub = True
    with pytest.raises(ValueError, match=r"`hub_strategy='every_save'` uploads the adapter of each checkpoint"):
        trainer.train()


def preference_trainer(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, object]], folder: Path, **settings: Any
) -> DPOTrainer:
    """IdkDPO: "I do not know" is preferred to the true answer."""
    pairs = [{"prompt": row["question"], "chosen": " I do not know.", "rejected": f" {row['answer']}"} for row in rows]
    args = DPOConfig(str(folder), **SETTINGS | {"bf16": False, "max_steps": 6, "learning_rate": 0.3} | settings)
    return DPOTrainer(
        model=wrap(build_model()),
        args=args,
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
        callbacks=[R2FCallback()],
    )


def test_a_preference_over_the_true_answer_is_learned_beside_a_reference_from_before(
    tokenizer: PreTrainedTokenizerFast, forget_rows: list[dict[str, object]], tmp_path: Path
) -> None:
    trainer = preference_trainer(tokenizer, forget_rows, tmp_path, precompute_ref_log_probs=True)
    trainer.train()
    margins = [logs["rewards/margins"] for logs in trainer.state.log_history if "loss" in logs]
    assert margins[0] == pytest.approx(0, abs=1e-3) and margins[-1] > 0.1


class Case(NamedTuple):
    """A trainer of TRL, its settings and arguments, and how the callback's refusal ends if it has one."""

    trainer: str
    settings: Mapping[str, Any] = MappingProxyType({})
    arguments: Collection[str] = ()
    refusal: str | None = None


MOVES = "the reference would move along"
COMPUTED = f"{MOVES}.* Set `precompute_ref_log_probs=True`, or pass a `ref_model`"
CASES = [
    Case("DPO", refusal=COMPUTED),
    Case("DPO", {"precompute_ref_log_probs": True}),
    Case("DPO", arguments=("ref_model",)),
    Case("KTO", refusal=COMPUTED),
    Case("KTO", {"precompute_ref_log_probs": True}),
    Case("KTO", arguments=("ref_model",)),
    Case("GRPO"),
    Case("GRPO", {"beta": 0.1}, refusal=f"{MOVES}.* Set `beta=0.0`"),
    Case("RLOO", {"beta": 0.0}),
    Case("RLOO", refusal=f"{MOVES}.* Set `beta=0.0`"),
    Case("OnlineDPO"),
    Case("OnlineDPO", arguments=("ref_model",)),
    Case("OnlineDPO", arguments=("peft_config", "ref_model")),
    Case("OnlineDPO", arguments=("peft_config",), refusal=f"{MOVES}.* Pass a `ref_model`"),
    Case("SDPO", {"teacher_model_kind": "live"}),
    Case("SDPO", {"teacher_model_kind": "base"}, refusal=f'{MOVES}.* Set `teacher_model_kind="live"`'),
    Case("SDPO", {"teacher_model_kind": "ema"}, refusal=f'{MOVES}.* Set `teacher_model_kind="live"`'),
    Case("SDFT", {"teacher_model_kind": "live"}),
    Case("SDFT", {"teacher_model_kind": "base"}, refusal=f'{MOVES}.* Set `teacher_model_kind="live"`'),
    Case("SDFT", {"teacher_model_kind": "ema"}, refusal=f'{MOVES}.* Set `teacher_model_kind="live"`'),
    # Its `beta` weighs two divergences from another model.
    Case("GOLD", {"beta": 0.5}),
]


def trl_trainer(case: Case, model: PreTrainedModel, tokenizer: Any, rows: list[Any], folder: Path) -> Trainer:
    """A trainer of TRL in the given case, over the given model."""
    name, small = case.trainer, {"max_completion_length": 4}
    online = small | {"num_generations": 2}
    module = {"OnlineDPO": "online_dpo", "SDPO": "sdpo", "SDFT": "sdft", "GOLD": "gold"}.get(name)
    trl = import_module(f"trl.experimental.{module}" if module else "trl")
    questions = [row["question"] for row in rows]
    answers = [f" {row['answer']}" for row in rows]
    contents: dict[str, list[Any]] = {"prompt": questions}
    settings: dict[str, Any] = {}
    arguments: dict[str, Any] = {}
    if name == "DPO":
        contents |= {"chosen": [" I do not know."] * len(rows), "rejected": answers}
    elif name == "KTO":
        contents |= {"completion": answers, "label": [index % 2 == 0 for index in range(len(rows))]}
    elif name == "GOLD":
        contents = {
            "messages": [
                [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
                for question, answer in zip(questions, answers, strict=True)
            ]
        }
        # It takes tokenizers of bytes only.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        settings, arguments = small | {"lmbda": 0.0}, {"teacher_model": build_model(seed=1)}
    else:
        settings = {"max_new_tokens": 4, "max_length": 64} if name == "OnlineDPO" else online
        if name in ("SDPO", "SDFT"):
            contents |= {"privileged_context": answers}
        if name != "SDFT":
            arguments = {"reward_funcs": lambda completions, **_: [float(len(each)) for each in completions]}
    if "ref_model" in case.arguments:
        arguments["ref_model"] = build_model(seed=1)
    if "peft_config" in case.arguments:
        arguments["peft_config"] = LoraConfig(r=RANK, lora_alpha=1e-6 * RANK, target_modules=MODULES)
    else:
        model = wrap(model)
    common = SETTINGS | {"bf16": False, "per_device_train_batch_size": 2}
    return getattr(trl, f"{name}Trainer")(
        model=model,
        args=getattr(trl, f"{name}Config")(str(folder), **common | settings | dict(case.settings)),
        train_dataset=Dataset.from_dict(contents),
        processing_class=tokenizer,
        callbacks=[R2FCallback()],
        **arguments,
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, [*case[:3], case.refusal is None])))
def test_only_a_reference_that_would_move_along_is_refused(
    case: Case,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    forget_rows: list[dict[str, object]],
    tmp_path: Path,
) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    before = weights(model)
    trainer = trl_trainer(case, model, tokenizer, forget_rows, tmp_path)
    if case.refusal is None:
        trainer.train()
        assert distance(before, weights(trainer.model)) > 0.01
        trainer.save_model(str(tmp_path / "result"))
        assert not changed(weights(trainer.model), load(tmp_path / "result"))
    else:
        with pytest.raises(ValueError, match=case.refusal):
            trainer.train()
        assert all(torch.equal(tensor, weights(trainer.model)[name]) for name, tensor in before.items())
        assert not any(
            probe.layer.lora_variant or probe.layer._forward_pre_hooks for probe in find_probes(trainer.model)
        )


def test_behind_an_adapter_that_takes_the_updates_a_reference_stays(
    tokenizer: PreTrainedTokenizerFast, forget_rows: list[dict[str, object]], tmp_path: Path
) -> None:
    model = wrap(build_model())
    model.add_adapter("result", LoraConfig(r=16, lora_alpha=16, target_modules=MODULES))
    model.base_model.set_adapter(["result", "default"])
    model.set_requires_grad("result", requires_grad=False)
    pairs = [{"prompt": row["question"], "chosen": " No.", "rejected": f" {row['answer']}"} for row in forget_rows]
    trainer = DPOTrainer(
        model=model,
        # PEFT lets all adapters require gradients once they are back, which checkpointing would notice.
        args=DPOConfig(str(tmp_path), **SETTINGS | {"bf16": False, "gradient_checkpointing": False}),
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
        callbacks=[R2FCallback(target=AdapterTarget("result"))],
    )
    trainer.train()


def test_a_run_into_an_adapter_resumes_with_the_state_of_its_step(
    tmp_path: Path, plain_trainer: BuildPlainTrainer
) -> None:
    def build() -> tuple[PeftModel, R2FCallback]:
        torch.manual_seed(0)
        model = wrap(build_model())
        model.add_adapter("result", LoraConfig(r=16, lora_alpha=16, target_modules=MODULES))
        model.base_model.set_adapter(["result", "default"])
        model.set_requires_grad("result", requires_grad=False)
        return model, R2FCallback(target=AdapterTarget("result"))

    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole, callback = build()
    plain_trainer(whole, callback, **settings).train()
    state = load_file(tmp_path / "output" / "checkpoint-2" / STEP_FILE)
    assert int(state["number"]) == 2 and any(name.endswith(".rows") for name in state)
    assert not (tmp_path / "output" / "checkpoint-2" / "full_model").exists()
