"""R2FStep without a Trainer: in a plain loop, in an accelerate loop, and beside R2FTrainer."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from conftest import BuildTrainer, build_model, changed, distance, weights
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from r2f_hf import R2FStep
from r2f_hf.updates.targets import AdapterTarget


MODULES = ["q_proj", "o_proj", "up_proj", "down_proj"]
LR = 0.1


def wrap(model: PreTrainedModel, **settings: Any) -> PeftModel:
    return get_peft_model(model, LoraConfig(**{"r": 8, "lora_alpha": 8e-6, "target_modules": MODULES} | settings))


def take_steps(r2f: R2FStep, model: PeftModel, batch: dict[str, Tensor], count: int) -> list[dict[str, float]]:
    found = []
    for _ in range(count):
        model(**batch).loss.backward()
        found.append(r2f.step(LR))
    return found


def test_a_plain_loop_learns_and_leaves_a_plain_model(model: PreTrainedModel, batch: dict[str, Tensor]) -> None:
    original = copy.deepcopy(model)
    wrapped = wrap(model)
    r2f = R2FStep(wrapped)
    r2f.begin()
    losses = []
    for _ in range(12):
        loss = wrapped(**batch).loss
        loss.backward()
        metrics = r2f.step(lr=LR)
        losses.append(loss.item())
    r2f.end()
    result = wrapped.unload()
    assert losses[-1] < 0.7 * losses[0]
    assert 0 < metrics["r2f/fidelity_min"] <= metrics["r2f/fidelity"] <= 1 and metrics["r2f/gradient_norm"] > 0
    assert type(result) is type(original)
    moved = changed(weights(original), weights(result))
    assert {name.split(".")[-2] for name in moved} == set(MODULES) and len(moved) == 8
    assert r2f.number == 12 and r2f.fidelity.keys() == r2f.modules.keys()


def test_each_module_takes_a_step_of_the_norm_that_is_asked_for(
    model: PreTrainedModel, batch: dict[str, Tensor]
) -> None:
    before = weights(model)
    wrapped = wrap(model)
    r2f = R2FStep(wrapped)
    r2f.begin()
    take_steps(r2f, wrapped, batch, 1)
    for name in r2f.modules:
        key = f"{name}.weight"
        assert (weights(wrapped)[key] - before[key]).norm().item() == pytest.approx(LR, rel=1e-4)


def test_a_damped_spectrum_moves_each_weight_equally_far_in_all_directions(
    model: PreTrainedModel, batch: dict[str, Tensor]
) -> None:
    before = weights(model)
    wrapped = wrap(model)
    r2f = R2FStep(wrapped, adaptive=False, spectrum_damping=0.5)
    r2f.begin()
    take_steps(r2f, wrapped, batch, 1)
    after = weights(wrapped.unload())
    for name in changed(before, after):
        values = torch.linalg.svdvals((after[name] - before[name]).double())
        moved = values[values > 1e-3 * values[0]]
        assert len(moved) > 1 and moved[-1] > 0.99 * moved[0], name


def test_gradients_of_several_backward_passes_are_one_step(model: PreTrainedModel, batch: dict[str, Tensor]) -> None:
    halves = [{name: values[rows] for name, values in batch.items()} for rows in (slice(0, 2), slice(2, 4))]
    results = []
    for parts in ([batch], halves):
        wrapped = wrap(copy.deepcopy(model))
        r2f = R2FStep(wrapped)
        r2f.begin()
        tokens = (batch["labels"][:, 1:] != -100).sum()
        for part in parts:
            (wrapped(**part).loss * (part["labels"][:, 1:] != -100).sum() / tokens).backward()
        r2f.step(LR)
        results.append(weights(wrapped))
    assert distance(*results) < 1e-3 * LR


def test_a_step_waits_for_the_device_as_rarely_as_it_can(model: PreTrainedModel, batch: dict[str, Tensor]) -> None:
    wrapped = wrap(model)
    r2f = R2FStep(wrapped)
    with r2f.protecting():
        wrapped(**batch)
    r2f.begin()
    take_steps(r2f, wrapped, batch, 2)
    wrapped(**batch).loss.backward()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        r2f.step(LR)
    calls = Counter({event.key: event.count for event in profile.key_averages()})
    # Whether the sketches are finite, before they are decomposed. Then all that decides what is written.
    assert calls["r2f/to_host"] == 2
    # Each decomposition waits too. There is one per size: both probes of the decoder, its core, and the subspaces.
    decompositions = calls["aten::linalg_eigh"] + calls["aten::_linalg_svd"]
    assert decompositions == 4
    # Reading a number of a tensor waits if the tensor is on the device. Three are read on the host: whether all is
    # finite, twice, and the norm of all gradients. Each decomposition reads whether it succeeded.
    assert calls["aten::_local_scalar_dense"] == 3 + decompositions
    assert not calls["aten::nonzero"] and not calls["aten::equal"]


def test_an_accelerate_loop_takes_the_same_steps(model: PreTrainedModel, batch: dict[str, Tensor]) -> None:
    plain = wrap(copy.deepcopy(model))
    r2f = R2FStep(plain)
    r2f.begin()
    take_steps(r2f, plain, batch, 3)

    accelerator = Accelerator(cpu=True)
    wrapped = wrap(model)
    r2f = R2FStep(wrapped)
    loader = torch.utils.data.DataLoader([batch] * 3, batch_size=None)
    prepared, loader = accelerator.prepare(wrapped, loader)
    r2f.begin()
    for each in loader:
        with accelerator.accumulate(prepared):
            accelerator.backward(prepared(**each).loss)
            if accelerator.sync_gradients:
                r2f.step(LR)
    assert r2f.number == 3
    assert not changed(weights(plain), weights(accelerator.unwrap_model(prepared)))


def test_a_loop_goes_on_from_its_state_to_the_same_bits(model: PreTrainedModel, batch: dict[str, Tensor]) -> None:
    whole, stopped = wrap(copy.deepcopy(model)), wrap(model)
    r2f = R2FStep(whole)
    r2f.begin()
    take_steps(r2f, whole, batch, 5)

    r2f = R2FStep(stopped)
    r2f.begin()
    take_steps(r2f, stopped, batch, 2)
    state = copy.deepcopy(r2f.state_dict())
    again = R2FStep(stopped)
    again.load_state_dict(state)
    again.begin()
    take_steps(again, stopped, batch, 3)
    assert not changed(weights(whole), weights(stopped))


def test_a_state_of_another_rank_is_refused(model: PreTrainedModel, batch: dict[str, Tensor]) -> None:
    wrapped = wrap(copy.deepcopy(model))
    r2f = R2FStep(wrapped)
    r2f.begin()
    take_steps(r2f, wrapped, batch, 1)
    with pytest.raises(ValueError, match=r"is of probes of rank 8, .* has rank 4"):
        R2FStep(wrap(model, r=4, lora_alpha=4e-6)).load_state_dict(r2f.state_dict())


def test_what_passes_by_is_protected(model: PreTrainedModel, batch: dict[str, Tensor]) -> None:
    """A step changes what the modules make of the protected batch less than without protection."""
    moved = {}
    other = {name: values.flip(0) for name, values in batch.items()}
    with torch.no_grad():
        before = model.eval()(**other, output_hidden_states=True).hidden_states[-1]
    for protected in (False, True):
        wrapped = wrap(copy.deepcopy(model))
        r2f = R2FStep(wrapped)
        if protected:
            with r2f.protecting():
                wrapped(**other)
        r2f.begin()
        wrapped(**batch).loss.backward()
        r2f.step(0.02)
        with torch.no_grad():
            moved[protected] = (wrapped(**other, output_hidden_states=True).hidden_states[-1] - before).norm().item()
    assert moved[True] < 0.5 * moved[False]


def test_an_adapter_can_take_the_updates(model: PreTrainedModel, batch: dict[str, Tensor]) -> None:
    before = weights(model)
    wrapped = wrap(model)
    wrapped.add_adapter("result", LoraConfig(r=16, lora_alpha=16, target_modules=MODULES))
    with pytest.raises(ValueError, match="no active adapter 'result' to take the updates"):
        R2FStep(wrapped, target=AdapterTarget("result")).begin()
    wrapped.base_model.set_adapter(["result", "default"])
    wrapped.set_requires_grad("result", requires_grad=False)
    r2f = R2FStep(wrapped, target=AdapterTarget("result"))
    r2f.begin()
    losses = [wrapped(**batch).loss.item()]
    for _ in range(8):
        found = take_steps(r2f, wrapped, batch, 1)
    losses.append(wrapped(**batch).loss.item())
    assert losses[1] < losses[0]
    assert 0 <= found[0]["r2f/discarded_energy"] <= 1
    assert not changed(before, weights(wrapped))


def test_without_a_backward_pass_a_step_says_what_is_missing(model: PreTrainedModel) -> None:
    r2f = R2FStep(wrap(model))
    r2f.begin()
    with pytest.raises(RuntimeError, match="has no gradient"):
        r2f.step(LR)


def test_it_takes_the_steps_that_the_trainer_takes(build_trainer: BuildTrainer) -> None:
    """The loop around it is the trainer's own batches and losses."""
    trained = build_model()
    # All forget rows in every step, so that the order of the rows is no matter.
    settings = {"protect_retain": False, "lr_scheduler_type": "constant", "max_steps": 2}
    settings |= {"per_device_train_batch_size": 6, "retain_per_forget": 1}
    trainer = build_trainer(trained, **settings)
    trainer.train()

    looped = build_trainer(build_model(), **settings)
    looped._set_references(looped._compute_references())
    model = looped.model.train()
    r2f = R2FStep(model, seed=looped.args.seed)
    r2f.begin()
    loader = looped.get_train_dataloader()
    for epoch in range(2):
        loader.dataset.set_epoch(epoch)
        for batch in loader:
            looped.compute_loss(model, batch).backward()
            r2f.step(0.1)
    assert r2f.number == 2
    assert distance(weights(trainer.model), weights(model)) < 1e-4 * distance(weights(build_model()), weights(model))
