"""Forget objectives by hand."""

from __future__ import annotations

import math

import pytest
import torch

from r2f_hf.objectives.forget import FORGET_OBJECTIVES


LOG_PROBS, TOKENS, REFERENCE = (-6.0, -2.0), (3, 4), (-4.0, -3.0)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("name", "beta", "gamma", "expected"),
    [
        ("ga", 0.1, 0.0, [-6.0, -2.0]),
        ("grad_diff", 0.1, 0.0, [-6.0, -2.0]),
        ("npo", 0.5, 9.0, [-4 * math.log(sigmoid(-0.5 * -2.0)), -4 * math.log(sigmoid(-0.5 * 1.0))]),
        ("npo", 2.0, 0.0, [-math.log(sigmoid(4.0)), -math.log(sigmoid(-2.0))]),
        ("tnpo", 2.0, 0.0, [-math.log(sigmoid(4.0)), -math.log(sigmoid(-2.0))]),
        ("wga", 2.0, 0.0, [math.exp(-12.0) / 2, math.exp(-4.0) / 2]),
        ("simnpo", 0.5, 0.25, [-4 * math.log(sigmoid(1.0 - 0.25)), -4 * math.log(sigmoid(0.25 - 0.25))]),
    ],
)
def test_losses_by_hand(name: str, beta: float, gamma: float, expected: list[float]) -> None:
    tensors = (torch.tensor(values, dtype=torch.float32) for values in (LOG_PROBS, TOKENS, REFERENCE))
    torch.testing.assert_close(FORGET_OBJECTIVES[name].loss(*tensors, beta, gamma), torch.tensor(expected))


@pytest.mark.parametrize("name", FORGET_OBJECTIVES)
def test_descending_any_of_them_makes_the_answer_less_probable(name: str) -> None:
    log_probs = torch.tensor(LOG_PROBS, requires_grad=True)
    FORGET_OBJECTIVES[name].loss(log_probs, torch.tensor(TOKENS), torch.tensor(REFERENCE), 0.1, 0.0).sum().backward()
    assert (log_probs.grad > 0).all()


def test_npo_starts_at_gradient_ascent_and_stops_when_all_is_forgotten() -> None:
    """Its gradient weight is 1 where policy and reference agree and goes to zero as the policy falls below."""
    log_probs = torch.tensor([-4.0, -400.0], requires_grad=True)
    FORGET_OBJECTIVES["npo"].loss(log_probs, torch.ones(2), torch.tensor([-4.0, -4.0]), 0.1, 0.0).sum().backward()
    torch.testing.assert_close(log_probs.grad, torch.tensor([1.0, 0.0]), atol=1e-6, rtol=0)


def test_what_each_objective_needs() -> None:
    assert {name for name, objective in FORGET_OBJECTIVES.items() if objective.needs_reference} == {"npo", "tnpo"}
    assert {name for name, objective in FORGET_OBJECTIVES.items() if objective.needs_retain} == {"grad_diff"}
    assert {name for name, objective in FORGET_OBJECTIVES.items() if objective.per_token} == {"ga", "grad_diff"}
    assert {name for name, objective in FORGET_OBJECTIVES.items() if objective.each_token} == {"wga", "tnpo"}
