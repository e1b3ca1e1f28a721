"""A step of fine-tuning before each step: what the losses see, and what is written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import BuildTrainer, build_model
from peft import LoraConfig, get_peft_model
from torch import Tensor

from r2f_hf import R2FStep, R2FTrainer
from r2f_hf.training.simulated_relearning import relearned_rows


@pytest.fixture
def step() -> R2FStep:
    # With a rank as large as the model is wide, the reconstruction is the gradient.
    config = LoraConfig(r=16, lora_alpha=16e-6, target_modules=["q_proj", "down_proj"])
    step = R2FStep(get_peft_model(build_model("llama"), config).train(), adaptive=False, held_out=0)
    step.begin()
    return step


def pairs(step: R2FStep) -> dict[str, Tensor]:
    return {f"{name}.{side}": getattr(each, side).grad for name, each in step.modules.items() for side in "AB"}


def test_losses_see_the_model_after_a_step_of_fine_tuning(step: R2FStep, batch: dict[str, Tensor]) -> None:
    weights = {name: probe.weight.clone() for name, probe in step.modules.items()}
    loss = step.model(**batch).loss
    loss.backward()
    step.relearn(0.1)
    assert not any(grad is not None for grad in pairs(step).values())
    relearned = step.model(**batch).loss
    assert relearned < loss
    relearned.backward()
    found = {name: grad.clone() for name, grad in pairs(step).items()}
    # Nothing was written.
    assert all(torch.equal(probe.weight, weights[name]) for name, probe in step.modules.items())
    steps = {name: probe.layer.lora_variant[probe.adapter].added for name, probe in step.modules.items()}
    step.read()
    assert torch.equal(step.model(**batch).loss, loss)

    # The same model with the step of fine-tuning in its weights.
    for name, probe in step.modules.items():
        U, V = steps[name]
        assert (U @ V.T).norm().item() == pytest.approx(0.1, rel=1e-3)
        probe.weight.data += U @ V.T
        probe.A.grad = probe.B.grad = None
    written = step.model(**batch).loss
    assert relearned.item() == pytest.approx(written.item(), rel=1e-5)
    written.backward()
    for name, grad in pairs(step).items():
        assert torch.allclose(found[name], grad, rtol=1e-3, atol=1e-5 * grad.abs().max().item()), name


def test_evaluations_see_the_model_as_it_is(step: R2FStep, batch: dict[str, Tensor]) -> None:
    loss = step.model(**batch).loss
    loss.backward()
    step.relearn(0.1)
    with torch.no_grad():
        assert torch.equal(step.model(**batch).loss, loss)


def test_a_step_that_is_skipped_ends_it_too(step: R2FStep, batch: dict[str, Tensor]) -> None:
    loss = step.model(**batch).loss
    loss.backward()
    step.relearn(0.1)
    # A gradient scaler that finds an overflow leaves the optimizer's step out, and the next probes are drawn.
    step.draw()
    assert not step.relearned and torch.equal(step.model(**batch).loss, loss)


def test_a_gradient_that_is_not_finite_moves_nothing(step: R2FStep, batch: dict[str, Tensor]) -> None:
    loss = step.model(**batch).loss
    (loss * float("nan")).backward()
    step.relearn(0.1)
    assert torch.equal(step.model(**batch).loss, loss)


def test_rows_are_drawn_anew_for_each_step() -> None:
    views: Any = [[{"row": index, "view": view} for view in range(2)] for index in range(6)]
    drawn = [relearned_rows(views, 4, 0, step) for step in range(20)]
    assert all(len({each["row"] for each in rows}) == 4 for rows in drawn)
    assert {(each["row"], each["view"]) for rows in drawn for each in rows} == {
        (i, v) for i in range(6) for v in (0, 1)
    }
    assert drawn[3] == relearned_rows(views, 4, 0, 3) != drawn[4]
    assert len(relearned_rows(views, 10, 0, 0)) == 6


def test_a_run_sees_rows_that_are_more_likely(build_trainer: BuildTrainer) -> None:
    losses = []
    for norm in (0.0, 0.3):
        trainer = build_trainer(
            build_model(), simulated_relearning=norm, forget_objective="ga", max_steps=1, logging_steps=1
        )
        trainer.train()
        losses.append(trainer.state.log_history[0]["forget_loss"])
    # Gradient ascent's loss is the log-likelihood.
    assert losses[1] > losses[0] + 0.1


def test_micro_batches_are_relearned_for_together(build_trainer: BuildTrainer) -> None:
    results = []
    for size, accumulation in ((4, 1), (2, 2)):
        model = build_model()
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        build_trainer(model, simulated_relearning=0.3, max_steps=3, **settings).train()
        results.append({name: weight.clone() for name, weight in model.state_dict().items()})
    for name, weight in results[0].items():
        torch.testing.assert_close(results[1][name], weight, atol=1e-5, rtol=1e-5)


def test_every_second_step_sees_the_model_as_it_is_while_tokens_are_lifted(build_trainer: BuildTrainer) -> None:
    seen = []

    class Trainer(R2FTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            seen.append((self.state.global_step, self.r2f_callback.step.relearned))
            return super().compute_loss(*args, **kwargs)

    objective = {"forget_objective": "ignorance", "forget_objective_kwargs": {"level": -3.0, "lift_after": 3}}
    settings = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "max_steps": 7}
    build_trainer(build_model(), Trainer, simulated_relearning=0.03, **objective, **settings).train()
    # Both micro-batches of a step see the same model.
    assert seen == [(step, step not in (3, 5)) for step in range(7) for _ in range(2)]
