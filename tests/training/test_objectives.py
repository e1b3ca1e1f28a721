"""All objectives through the trainer: they train, keep what they need in checkpoints, and refuse what cannot work."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from conftest import BuildTrainer, changed, weights
from transformers import PreTrainedModel

from r2f_hf.objectives import FORGET_OBJECTIVES, RETAIN_OBJECTIVES


# Options without which a tiny model or a run without a holdout set cannot do.
OPTIONS: dict[str, dict[str, Any]] = {
    "margin": {"anchor": -2.0},
    "altpo": {"num_answers": 2, "max_new_tokens": 8, "instruction": "{prompt}"},
    "bs_s": {"num_answers": 2, "max_new_tokens": 8},
    "dpo": {"answers": "refusal"},
    "idk": {"answers": "refusal"},
    "flat": {"answers": "refusal"},
    "duet": {"answers": "refusal", "teacher_prompt": "Cleo? {prompt}"},
}


@pytest.fixture
def data(forget_rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The forget set with second answers in a column: two to the first row, and one to each other row."""
    refusals = [["Cleo.", "Bram lives."], *["Cleo lives."] * (len(forget_rows) - 1)]
    return {"forget_dataset": [row | {"refusal": each} for row, each in zip(forget_rows, refusals, strict=True)]}


@pytest.mark.parametrize("name", FORGET_OBJECTIVES)
def test_every_forget_objective_trains_by_its_name(
    name: str, model: PreTrainedModel, build_trainer: BuildTrainer, data: dict[str, Any]
) -> None:
    before = weights(model)
    trainer = build_trainer(
        model,
        data=data,
        forget_objective=name,
        forget_objective_kwargs=json.dumps(OPTIONS.get(name, {})),
        max_steps=2,
    )
    trainer.train()
    assert changed(before, weights(trainer.model.unload()))
    losses = [logs["forget_loss"] for logs in trainer.state.log_history if "forget_loss" in logs]
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    assert trainer.r2f_callback.skipped_steps == 0


@pytest.mark.parametrize("options", [{}, {"k": None}])
@pytest.mark.parametrize("name", RETAIN_OBJECTIVES)
def test_every_retain_objective_trains_by_its_name(
    name: str, options: dict[str, Any], model: PreTrainedModel, build_trainer: BuildTrainer
) -> None:
    if options and name not in ("kl", "jensen_shannon"):
        pytest.skip("has no such option")
    trainer = build_trainer(model, retain_objective=name, retain_objective_kwargs=options, max_steps=2)
    trainer.train()
    losses = [logs["retain_loss"] for logs in trainer.state.log_history if "retain_loss" in logs]
    assert all(map(math.isfinite, losses))
    if name != "nll":
        # The model is its own reference at the first step.
        assert losses[0] == pytest.approx(0, abs=1e-5) and losses[1] > 1e-7
