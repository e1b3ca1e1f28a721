"""NPO and its variants by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from r2f_hf.objectives import FORGET_OBJECTIVES, ForgetInputs


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# Two rows: three tokens sum to -6, and four tokens to -2. Under the reference they sum to -4 and to -3.
LOG_PROBS = torch.tensor([-1.0, -2.0, -3.0, -0.5, -0.5, -0.5, -0.5])
REFERENCE = torch.tensor([-2.0, -1.0, -1.0, -0.75, -0.75, -0.75, -0.75])
ROWS = torch.tensor([0, 0, 0, 1, 1, 1, 1])


def loss(name: str, log_probs: torch.Tensor = LOG_PROBS, **options: Any) -> torch.Tensor:
    return FORGET_OBJECTIVES[name](**options)(ForgetInputs(log_probs, ROWS, 2, REFERENCE))


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("npo", {"beta": 0.5}, [-4 * math.log(sigmoid(-0.5 * -2.0)), -4 * math.log(sigmoid(-0.5 * 1.0))]),
        ("npo", {"beta": 2.0}, [-math.log(sigmoid(4.0)), -math.log(sigmoid(-2.0))]),
        ("simnpo", {"beta": 0.5, "gamma": 0.25}, [-4 * math.log(sigmoid(0.75)), -4 * math.log(sigmoid(0.0))]),
        (
            "tnpo",
            {"beta": 2.0},
            [-math.log(sigmoid(-2 * ratio)) for ratio in (1.0, -1.0, -2.0, 0.25, 0.25, 0.25, 0.25)],
        ),
    ],
)
def test_losses_by_hand(name: str, options: dict[str, float], expected: list[float]) -> None:
    torch.testing.assert_close(loss(name, **options), torch.tensor(expected))


# The second answers of the two rows have one token and two.
SECOND = ForgetInputs(torch.tensor([-3.0, -1.0, -1.0]), torch.tensor([0, 1, 1]), 2, torch.tensor([-1.0, -2.0, -1.5]))


@pytest.mark.parametrize(
    ("name", "options", "scale"),
    [
        ("dpo", {"beta": 0.5}, 1.0),
        ("dpo", {"beta": 0.5, "definition": "open-unlearning"}, 4.0),
        ("altpo", {"beta": 0.5}, 4.0),
        ("altpo", {"beta": 0.5, "definition": "paper"}, 1.0),
    ],
)
def test_the_second_answer_is_preferred_to_the_one_to_forget(name: str, options: dict[str, Any], scale: float) -> None:
    found = FORGET_OBJECTIVES[name](**options)(ForgetInputs(LOG_PROBS, ROWS, 2, REFERENCE, second=SECOND))
    # The log-ratios are -2 and 1.5 for the second answers, and -2 and 1 for those to forget.
    expected = [-scale * math.log(sigmoid(0.5 * 0.0)), -scale * math.log(sigmoid(0.5 * 0.5))]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_npo_starts_at_gradient_ascent_and_stops_when_all_is_forgotten() -> None:
    """The weight of its gradient is 1 where model and reference agree, and goes to 0 as the model falls below."""
    log_probs = REFERENCE.clone()
    log_probs[3:] -= 100
    log_probs.requires_grad_(True)
    loss("npo", log_probs).sum().backward()
    torch.testing.assert_close(log_probs.grad, (ROWS == 0).float(), atol=1e-6, rtol=0)
