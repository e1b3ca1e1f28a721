"""IDK, FLAT and JensUn by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from r2f_hf.objectives import FORGET_OBJECTIVES, ForgetInputs


ROWS = torch.tensor([0, 0, 1])
# Mean probabilities of 0.5 and 0.25 for the answers, and of 0.125 and 0.75 for the second ones.
ANSWERS = torch.tensor([0.75, 0.25, 0.25]).log()
SECOND = torch.tensor([0.125, 0.9, 0.6]).log()


def inputs() -> ForgetInputs:
    return ForgetInputs(ANSWERS, ROWS, 2, second=ForgetInputs(SECOND, torch.tensor([0, 1, 1]), 2))


def test_idk_is_the_likelihood_of_the_second_answer() -> None:
    objective = FORGET_OBJECTIVES["idk"]()
    assert objective.mean_over == "second_tokens"
    torch.testing.assert_close(objective(inputs()), -SECOND)


@pytest.mark.parametrize(
    ("divergence", "g", "conjugate"),
    [
        ("kl", lambda v: v, lambda u: math.exp(u - 1)),
        ("total_variation", lambda v: math.tanh(v) / 2, lambda u: u),
        ("jensen_shannon", lambda v: math.log(2 / (1 + math.exp(-v))), lambda u: -math.log(2 - math.exp(u))),
        ("pearson", lambda v: v, lambda u: u * u / 4 + u),
    ],
)
def test_flat_by_hand(divergence: str, g: Callable[[float], float], conjugate: Callable[[float], float]) -> None:
    found = FORGET_OBJECTIVES["flat"](divergence=divergence)(inputs())
    expected = [conjugate(g(old)) - g(new) for old, new in ((0.5, 0.125), (0.25, 0.75))]
    torch.testing.assert_close(found, torch.tensor(expected))


def jensun(logits: Tensor, rows: Tensor, ids: list[int], divergence: str = "jensen_shannon") -> Tensor:
    objective = FORGET_OBJECTIVES["jensun"](divergence=divergence)
    objective.token_ids = ids
    nothing = torch.zeros(len(rows))
    return objective(ForgetInputs(nothing, rows, int(rows[-1]) + 1, labels=nothing.long(), logits=logits))


def test_jensun_is_the_divergence_to_the_texts_tokens_in_turn() -> None:
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    rows, ids = torch.tensor([0, 0, 0, 1]), [3, 1]
    for divergence in ("jensen_shannon", "kl"):
        found = jensun(logits, rows, ids, divergence)
        for position, target in enumerate((3, 1, 3, 3)):
            p, one_hot = logits[position].softmax(-1), torch.eye(5)[target]
            m = (p + one_hot) / 2
            shannon = (p * (p / m).log()).sum() / 2 - m[target].log() / 2
            expected = shannon if divergence == "jensen_shannon" else -p[target].log()
            torch.testing.assert_close(found[position], expected)


def test_jensun_is_bounded() -> None:
    logits = torch.tensor([[60.0, -60.0], [-60.0, 60.0]])
    found = jensun(logits, torch.tensor([0, 1]), [0])
    torch.testing.assert_close(found, torch.tensor([0.0, math.log(2)]))
