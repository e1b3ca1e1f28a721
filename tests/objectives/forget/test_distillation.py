"""UNDIAL, CE-U, SHRED and DUET by hand and against their definitions over the whole vocabulary."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from r2f_hf.objectives import FORGET_OBJECTIVES, ForgetInputs
from r2f_hf.objectives.divergences import top_log_probs


VOCABULARY = 9
ROWS, LABELS = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([2, 0, 8, 5, 5])


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(5, VOCABULARY, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def reference() -> Tensor:
    return 2 * torch.randn(5, VOCABULARY, generator=torch.Generator().manual_seed(1))


def inputs(logits: Tensor, reference: Tensor, k: int | None) -> ForgetInputs:
    own, before = (each.log_softmax(-1).gather(-1, LABELS[:, None])[:, 0] for each in (logits, reference))
    return ForgetInputs(own, ROWS, 2, before, LABELS, logits, *top_log_probs(reference, k))


@pytest.mark.parametrize("k", [None, VOCABULARY])
def test_undial_is_cross_entropy_to_the_adjusted_teacher(k: int | None, logits: Tensor, reference: Tensor) -> None:
    found = FORGET_OBJECTIVES["undial"](beta=3.0, k=k)(inputs(logits, reference, k))
    target = (reference - 3 * F.one_hot(LABELS, VOCABULARY)).softmax(-1)
    torch.testing.assert_close(found, -(target * logits.log_softmax(-1)).sum(-1), atol=1e-4, rtol=1e-4)


def test_undial_of_few_tokens_has_its_least_value_at_the_adjusted_teacher(reference: Tensor) -> None:
    objective = FORGET_OBJECTIVES["undial"](beta=3.0, k=4)
    ids, _ = top_log_probs(reference, 4)
    lowered = reference - 3 * F.one_hot(LABELS, VOCABULARY) * (ids == LABELS[:, None]).any(-1, keepdim=True)
    adjusted = lowered.clone().requires_grad_(True)
    objective(inputs(adjusted, reference, 4)).sum().backward()
    torch.testing.assert_close(adjusted.grad, torch.zeros_like(adjusted), atol=1e-5, rtol=0)


def test_ce_u_by_hand() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log().requires_grad_(True)
    nothing = torch.zeros(1)
    found = FORGET_OBJECTIVES["ce_u"]()(
        ForgetInputs(nothing, nothing.long(), 1, labels=torch.tensor([0]), logits=logits)
    )
    expected = -(0.6 * torch.tensor(0.3).log() + 0.4 * torch.tensor(0.2).log())
    torch.testing.assert_close(found, expected[None])
    found.sum().backward()
    # No gradient passes through the target: softmax minus target.
    torch.testing.assert_close(logits.grad, torch.tensor([[0.5, -0.3, -0.2]]))


@pytest.mark.parametrize("k", [None, VOCABULARY])
def test_shred_lowers_what_surprised_most_and_holds_the_rest(k: int | None, logits: Tensor, reference: Tensor) -> None:
    given = inputs(logits, reference, k)
    found = FORGET_OBJECTIVES["shred"](fraction=0.34, demotion=5.0, k=k)(given)
    before = given.reference_log_probs
    # A third of three tokens, rounded up, is two, and that of two tokens is one.
    chosen = {*before[:3].argsort()[:2].tolist(), 3 + int(before[3:].argmin())}
    for token in range(5):
        target = reference[token].clone()
        target[LABELS[token]] -= 5 * (token in chosen)
        divergence = F.kl_div(logits[token].log_softmax(-1), target.log_softmax(-1), log_target=True, reduction="sum")
        torch.testing.assert_close(found[token], divergence, atol=1e-4, rtol=1e-4)


def test_duet_matches_the_teachers_top_tokens(logits: Tensor, reference: Tensor) -> None:
    nothing = torch.zeros(1)
    given = ForgetInputs(nothing, nothing.long(), 1, second=inputs(logits, reference, 3))
    found = FORGET_OBJECTIVES["duet"]()(given)
    ids = reference.topk(3).indices
    gaps = (logits.log_softmax(-1) - reference.log_softmax(-1)).gather(-1, ids).abs()
    expected = torch.where(gaps < 1, gaps.square() / 2, gaps - 0.5).mean(-1)
    torch.testing.assert_close(found, expected)
