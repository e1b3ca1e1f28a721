"""Gradient ascent by hand."""

from __future__ import annotations

import math

import pytest
import torch

from r2f_hf.objectives import FORGET_OBJECTIVES, ForgetInputs


INPUTS = ForgetInputs(torch.tensor([-6.0, -2.0]), torch.tensor([0, 1]), 2)


@pytest.mark.parametrize("name", ["ga", "grad_diff"])
def test_ascent_is_the_log_probability_itself(name: str) -> None:
    assert FORGET_OBJECTIVES[name]()(INPUTS).tolist() == [-6.0, -2.0]


def test_weighted_ascent_by_hand() -> None:
    found = FORGET_OBJECTIVES["wga"](beta=2.0)(INPUTS)
    torch.testing.assert_close(found, torch.tensor([math.exp(-12.0) / 2, math.exp(-4.0) / 2]))


def test_satimp_by_hand() -> None:
    log_probs = torch.tensor([-6.0, -0.5], requires_grad=True)
    found = FORGET_OBJECTIVES["satimp"](beta1=0.5, beta2=2.0)(ForgetInputs(log_probs, INPUTS.rows, 2))
    factors = [math.exp(-3.0) * (1 - math.exp(-6.0)) ** 2, math.exp(-0.25) * (1 - math.exp(-0.5)) ** 2]
    torch.testing.assert_close(found, torch.tensor([factors[0] * -6.0, factors[1] * -0.5]))
    found.sum().backward()
    torch.testing.assert_close(log_probs.grad, torch.tensor(factors))


def test_the_gradient_of_weighted_ascent_is_weighted_by_the_tokens_probability() -> None:
    log_probs = torch.tensor([-6.0, -2.0], requires_grad=True)
    FORGET_OBJECTIVES["wga"](beta=0.5)(ForgetInputs(log_probs, INPUTS.rows, 2)).sum().backward()
    torch.testing.assert_close(log_probs.grad, torch.tensor([math.exp(-3.0), math.exp(-1.0)]))
