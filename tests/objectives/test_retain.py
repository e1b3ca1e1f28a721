"""Retain objectives by hand and against the definitions over the whole vocabulary."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from r2f_hf.objectives import RetainInputs
from r2f_hf.objectives.retain import KL, NLL, JensenShannon, top_log_probs


VOCABULARY = 12
LABELS = torch.tensor([[-100, 3, 0, -100], [7, -100, 1, 2]])
# Positions whose next token is labelled.
ROWS, POSITIONS = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 2])


@pytest.fixture
def reference() -> Tensor:
    return 2 * torch.randn(2, 4, VOCABULARY, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def logits() -> Tensor:
    return 2 * torch.randn(2, 4, VOCABULARY, generator=torch.Generator().manual_seed(1))


def kl(logits: Tensor, reference: Tensor, k: int, labels: Tensor = LABELS) -> Tensor:
    at_labels = reference[:, :-1][labels[:, 1:] != -100]
    return KL(k)(RetainInputs(logits, labels, *top_log_probs(at_labels, k)))


def full_kl(logits: Tensor, reference: Tensor) -> Tensor:
    """`KL(reference ‖ model)` over the whole vocabulary, summed over each row's positions."""
    p, q = reference[ROWS, POSITIONS].log_softmax(-1), logits[ROWS, POSITIONS].log_softmax(-1)
    return torch.zeros(2).index_add(0, ROWS, (p.exp() * (p - q)).sum(-1))


def test_nll_sums_cross_entropy_over_the_labels(logits: Tensor) -> None:
    expected = [F.cross_entropy(logits[row, :-1], LABELS[row, 1:], reduction="sum") for row in range(2)]
    torch.testing.assert_close(NLL()(RetainInputs(logits, LABELS)), torch.stack(expected))


@pytest.mark.parametrize("k", [VOCABULARY, KL().k])
def test_kl_with_all_tokens_is_the_full_divergence(k: int, logits: Tensor, reference: Tensor) -> None:
    torch.testing.assert_close(kl(logits, reference, k), full_kl(logits, reference), atol=1e-5, rtol=1e-5)


def test_kl_of_the_top_tokens_bounds_the_full_divergence_from_below(logits: Tensor, reference: Tensor) -> None:
    bounds = torch.stack([kl(logits, reference, k) for k in (1, 3, 6, VOCABULARY)])
    assert (bounds > 0).all()
    # With more tokens the partition is finer, and the divergence over it cannot be smaller.
    assert (bounds.diff(dim=0) > 0).all()
    assert (bounds[:-1] < full_kl(logits, reference)).all()


@pytest.mark.parametrize("k", [1, 4, VOCABULARY])
def test_kl_is_zero_and_flat_at_the_reference(k: int, reference: Tensor) -> None:
    logits = reference.clone().requires_grad_(True)
    loss = kl(logits, reference, k)
    loss.sum().backward()
    torch.testing.assert_close(loss, torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), atol=1e-6, rtol=0)


def test_kl_by_hand_with_one_token_and_the_rest() -> None:
    reference = torch.tensor([0.7, 0.1, 0.1, 0.1]).log().expand(1, 2, 4)
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().expand(1, 2, 4)
    loss = kl(logits, reference, 1, torch.tensor([[-100, 2]]))
    expected = 0.7 * torch.tensor(0.7 / 0.4).log() + 0.3 * torch.tensor(0.3 / 0.6).log()
    torch.testing.assert_close(loss, expected[None])


def test_kl_is_finite_where_the_top_tokens_have_all_the_mass() -> None:
    reference = torch.full((1, 2, 4), -60.0).index_fill(-1, torch.tensor([0]), 60.0)
    logits = (-reference).requires_grad_(True)
    loss = kl(logits, reference, 1, torch.tensor([[-100, 2]]))
    loss.sum().backward()
    assert loss.isfinite().all() and logits.grad.isfinite().all() and loss > 100


def test_top_log_probs_are_those_of_the_most_likely_tokens(reference: Tensor) -> None:
    ids, log_probs = top_log_probs(reference.bfloat16(), k=3)
    assert log_probs.dtype == torch.float32 and ids.shape == log_probs.shape == (2, 4, 3)
    torch.testing.assert_close(log_probs, reference.bfloat16().float().log_softmax(-1).gather(-1, ids))
    assert torch.equal(ids[..., 0], reference.bfloat16().argmax(-1))


def test_jensen_shannon_by_hand_with_one_token_and_the_rest() -> None:
    reference = torch.tensor([0.7, 0.1, 0.1, 0.1]).log().expand(1, 2, 4)
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().expand(1, 2, 4)
    top = top_log_probs(reference[:, 0], 1)
    loss = JensenShannon(1)(RetainInputs(logits, torch.tensor([[-100, 2]]), *top))
    p, q = torch.tensor([0.7, 0.3]), torch.tensor([0.4, 0.6])
    middle = (p + q) / 2
    expected = ((p * (p / middle).log()).sum() + (q * (q / middle).log()).sum()) / 2
    torch.testing.assert_close(loss, expected[None])
