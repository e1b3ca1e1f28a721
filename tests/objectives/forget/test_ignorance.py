"""Ignorance by hand: down to a target, no further, and back up."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from r2f_hf.objectives import FORGET_OBJECTIVES, ForgetInputs


def inputs() -> ForgetInputs:
    log_probs = torch.tensor([-1.0, -5.0, -2.0], requires_grad=True)
    return ForgetInputs(log_probs, torch.tensor([0, 0, 1]), 2, ignorant_log_probs=torch.tensor([-3.0, -3.0, -2.0]))


def test_only_tokens_above_the_target_are_lowered_at_first() -> None:
    objective, batch = FORGET_OBJECTIVES["ignorance"](lift_after=1), inputs()
    losses = objective(batch)
    assert losses.tolist() == [2.0, 0.0, 0.0]
    losses.sum().backward()
    assert batch.log_probs.grad.tolist() == [1.0, 0.0, 0.0]


def test_tokens_below_the_target_are_lifted_later_and_a_checkpoint_knows_when() -> None:
    objective = FORGET_OBJECTIVES["ignorance"](lift_after=2)
    objective.after_step({})
    objective.after_step({})
    resumed, batch = FORGET_OBJECTIVES["ignorance"](lift_after=2), inputs()
    resumed.load_state(objective.state())
    losses = resumed(batch)
    assert losses.tolist() == [1.5, 1.5, 0.0]
    losses.sum().backward()
    assert batch.log_probs.grad.tolist() == [1.0, -1.0, 0.0]
    resumed.load_state({})
    assert resumed(inputs()).tolist() == [2.0, 0.0, 0.0]


def test_the_target_follows_the_holdout_set_once_the_forget_set_has_come_up() -> None:
    objective = FORGET_OBJECTIVES["ignorance"](lift_after=0)
    below = np.exp([-3.0, -5.0]), np.exp([-2.0, -2.0])
    objective.after_check(*below)
    assert objective.level_factor == 1
    # It is above by 0.8 of 2 on average.
    objective.after_check(np.exp([-1.0, -1.4]), np.exp([-1.0, -3.0]))
    assert objective.level_factor == pytest.approx(1.1)
    resumed, batch = FORGET_OBJECTIVES["ignorance"](lift_after=0), inputs()
    resumed.load_state(objective.state())
    # The targets are -3.3, -3.3 and -2.2 now.
    assert resumed(batch).tolist() == pytest.approx([1.8, 1.2, 0.02])
    resumed.after_check(*below)
    assert resumed.level_factor == pytest.approx(0.85)


def test_the_target_stays_within_bounds() -> None:
    objective = FORGET_OBJECTIVES["ignorance"](lift_after=0)
    for _ in range(40):
        objective.after_check(np.array([0.7, 0.4]), np.array([0.2, 0.2]))
    assert objective.level_factor == 3
    objective.after_check(np.array([0.0, 0.4]), np.array([0.2, 0.2]))
    assert objective.level_factor == 3
    for _ in range(2):
        objective.after_check(np.array([1e-8, 1e-8]), np.array([0.2, 0.2]))
    assert objective.level_factor == 0.5
