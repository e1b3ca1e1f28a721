"""Training ends once the forget set looks like text that the model never saw, and the retain set is kept."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import BuildTrainer, rows
from transformers import PreTrainedModel, TrainerControl, TrainerState

from r2f_hf import R2FConfig
from r2f_hf.objectives import FORGET_OBJECTIVES
from r2f_hf.objectives.forget import Ignorance
from r2f_hf.training.stopping import KEPT, HoldoutStopping, stop_criterion


EVEN = np.linspace(0.1, 0.3, 12)


@pytest.mark.parametrize(
    ("forget", "criterion"),
    [
        (EVEN + 0.5, None),
        # Three rows of four are still known: the mean is too high, and the distribution is another one.
        (np.where(np.arange(12) % 4, 0.9, 0.2), None),
        (EVEN + 0.01, r"Kolmogorov-Smirnov: .* \(p = 1.00\)"),
        (EVEN - 0.01, r"mean probability: .*\(0.190\).*\(0.200\)"),
        # A run that has gone too far stops too, however different the distributions are.
        (EVEN / 100, "mean probability"),
    ],
)
def test_stop_criterion(forget: np.ndarray, criterion: str | None) -> None:
    found = stop_criterion(forget, EVEN)
    if criterion is None:
        assert found is None
    else:
        assert found is not None
        assert re.match(criterion, found)


@pytest.mark.parametrize(
    ("forget", "criterion"),
    [
        (EVEN + 0.5, None),
        (EVEN + 0.0001, r"loss attack: it has an AUC of 0\.5\d"),
        # Far below the holdout set, a loss tells that something was deleted.
        (EVEN / 2, None),
        (EVEN - 0.0001, r"loss attack: it has an AUC of 0\.4\d"),
        # Two rows that stand out do not matter to the ranks.
        (np.where(np.arange(12) == 11, 0.9, EVEN), "loss attack"),
    ],
)
def test_an_objective_that_comes_back_from_below_ends_only_at_the_level(
    forget: np.ndarray, criterion: str | None
) -> None:
    found = stop_criterion(forget, EVEN, "level")
    assert found is None if criterion is None else re.match(criterion, str(found))


def test_ignorance_ends_no_run_before_it_lifts(tmp_path: Path) -> None:
    objective, reasons = Ignorance(lift_after=3), []
    rule = HoldoutStopping(lambda name: EVEN, lambda name: EVEN, lambda logs: None, reasons.append, objective)
    args = R2FConfig(str(tmp_path), stop_check_steps=1, use_cpu=True)
    state, control = TrainerState(), TrainerControl()
    for step in range(1, 4):
        assert not reasons and not control.should_training_stop
        objective.after_step({})
        state.global_step = step
        rule.on_step_end(args, state, control)
    assert control.should_training_stop and "loss attack" in reasons[0]


@pytest.mark.parametrize("kind", ["ignorance", "npo"])
def test_only_an_objective_that_ends_at_a_level_hears_of_checks_and_only_after_it_lifts(
    tmp_path: Path, kind: str
) -> None:
    class Listening(FORGET_OBJECTIVES[kind]):
        def after_check(self, forget: np.ndarray, holdout: np.ndarray) -> None:
            heard.append((state.global_step, forget[0], holdout[0]))
            super().after_check(forget, holdout)

    heard: list[tuple[int, float, float]] = []
    objective = Listening(**({"lift_after": 3} if kind == "ignorance" else {}))
    now = {"forget": EVEN + 0.5, "holdout": EVEN + 0.2}
    rule = HoldoutStopping(now.__getitem__, lambda name: EVEN, lambda logs: None, lambda reason: None, objective)
    args = R2FConfig(str(tmp_path), stop_check_steps=1, use_cpu=True)
    state, control = TrainerState(), TrainerControl()
    for step in range(1, 5):
        objective.after_step({})
        state.global_step = step
        rule.on_step_end(args, state, control)
    assert heard == ([(step, 0.6, pytest.approx(0.3)) for step in (3, 4)] if kind == "ignorance" else [])
    assert kind == "npo" or objective.level_factor > 1


@pytest.mark.parametrize(("forget", "warned"), [(EVEN / 100, True), (EVEN - 0.001, False)])
def test_a_run_that_ends_below_the_holdout_set_says_that_losses_show_it(
    tmp_path: Path, forget: np.ndarray, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    reasons: list[str] = []
    now = {"forget": forget, "holdout": EVEN, "retain": EVEN}
    objective = FORGET_OBJECTIVES["npo"]()
    rule = HoldoutStopping(now.__getitem__, lambda name: EVEN, lambda logs: None, reasons.append, objective)
    args = R2FConfig(str(tmp_path), stop_check_steps=1, use_cpu=True)
    with caplog.at_level("WARNING", logger="r2f_hf.training.stopping"):
        rule.on_step_end(args, TrainerState(global_step=1), TrainerControl())
    assert len(reasons) == 1
    assert ("a loss attack has an AUC of 0.00" in caplog.text) == warned


@pytest.mark.parametrize(("forget_rows", "holdout_rows"), [(1, 30), (2, 7), (3, 4), (30, 1)])
def test_sets_too_small_to_differ_significantly_are_told_apart_by_their_means(
    forget_rows: int, holdout_rows: int
) -> None:
    unseen = np.linspace(0.1, 0.3, holdout_rows)
    assert stop_criterion(np.full(forget_rows, 0.99), unseen) is None
    assert str(stop_criterion(np.full(forget_rows, 0.05), unseen)).startswith("mean probability")


def test_a_run_that_protects_the_retain_set_ends_with_it_kept(
    memorised_model: PreTrainedModel, build_trainer: BuildTrainer, holdout_rows: list[dict[str, Any]]
) -> None:
    settings = {"per_device_train_batch_size": 6, "retain_per_forget": 2, "retain_weight": 3.0, "stop_check_steps": 2}
    trainer = build_trainer(memorised_model, data={"holdout_dataset": holdout_rows}, max_steps=80, **settings)
    trainer.train()
    assert trainer.stop_reason is not None and trainer.state.global_step < 80
    retain = trainer.completion_probabilities(trainer.splits.retain_sample)
    assert retain.mean() >= KEPT * trainer.reference_probabilities("retain").mean()


def test_a_run_ends_when_the_forget_set_is_like_the_holdout_set_and_the_retain_set_is_back(
    memorised_model: PreTrainedModel, build_trainer: BuildTrainer, holdout_rows: list[dict[str, Any]]
) -> None:
    trainer = build_trainer(
        memorised_model,
        data={"holdout_dataset": holdout_rows},
        max_steps=80,
        stop_check_steps=2,
        per_device_train_batch_size=6,
        retain_per_forget=2,
        retain_weight=3.0,
        # Otherwise the retain set would not be harmed, and would not have to come back.
        protect_retain=False,
        learning_rate=0.03,
    )
    before = trainer.evaluate()
    trainer.train()
    assert trainer.stop_reason is not None
    assert 2 < trainer.state.global_step < 80 and trainer.state.global_step % 2 == 0
    checks = [logs for logs in trainer.state.log_history if "r2f/forget_probability" in logs]
    assert len(checks) == trainer.state.global_step // 2
    assert checks[0]["r2f/forget_probability"] > 0.5 > checks[-1]["r2f/forget_probability"]
    # The probabilities to compare with are those of the model before unlearning. The run has changed it since.
    holdout = trainer.reference_probabilities("holdout")
    assert holdout.mean() == pytest.approx(before["eval_holdout_probability"], rel=1e-4)
    kept = KEPT * trainer.reference_probabilities("retain").mean()
    # Once the forget set was gone, the run went on until the retain set was back, and ended then.
    retain = [logs["r2f/retain_probability"] for logs in checks if "r2f/retain_probability" in logs]
    assert len(retain) > 1
    assert max(retain[:-1]) < kept <= retain[-1]
    forget = trainer.completion_probabilities(trainer.splits.originals)
    assert trainer.stop_reason.startswith(str(stop_criterion(forget, holdout)))
    assert f"retain set's mean probability is {retain[-1]:.3f}" in trainer.stop_reason


def test_without_a_holdout_set_a_run_takes_all_its_steps(model: PreTrainedModel, build_trainer: BuildTrainer) -> None:
    trainer = build_trainer(model, max_steps=3, stop_check_steps=1)
    trainer.train()
    assert trainer.stop_reason is None
    assert trainer.state.global_step == 3


def test_checking_the_holdout_set_suppresses_no_log(
    memorised_model: PreTrainedModel, build_trainer: BuildTrainer, holdout_rows: list[dict[str, Any]]
) -> None:
    """Logging inside a callback clears `should_log`, with which the Trainer asks for its own log of the step."""
    trainer = build_trainer(
        memorised_model, data={"holdout_dataset": holdout_rows}, max_steps=4, stop_check_steps=1, learning_rate=1e-6
    )
    trainer.train()
    assert [logs["step"] for logs in trainer.state.log_history if "loss" in logs] == [1, 2, 3, 4]


@pytest.mark.parametrize(("known", "name"), [("forget", "Orla"), ("retain", "Bram")])
def test_holdout_rows_that_the_model_knows_are_refused(
    known: str, name: str, model: PreTrainedModel, build_trainer: BuildTrainer
) -> None:
    with pytest.raises(ValueError, match=rf"The {known} and holdout sets share 2 rows: {known}\[0\] = holdout\[0\]"):
        build_trainer(model, data={"holdout_dataset": rows(name, 2)})
