"""A LoRA pair takes an update as well as its rank allows."""

from __future__ import annotations

import pytest
import torch

from r2f_hf.gradients import LowRankGradient
from r2f_hf.updates import add_to_pair_


@pytest.mark.parametrize(
    ("out_features", "in_features", "rank"), [(24, 30, 6), (30, 24, 6), (8, 40, 12), (24, 30, 40)]
)
def test_is_the_best_approximation_of_its_rank(out_features: int, in_features: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(rank, in_features, generator=generator)
    B = torch.randn(out_features, rank, generator=generator)
    update = LowRankGradient(
        torch.randn(out_features, 5, generator=generator), torch.randn(in_features, 5, generator=generator)
    )
    whole = (B.double() @ A.double()) - 0.7 * update.U.double() @ update.V.double().T
    U, S, Vh = torch.linalg.svd(whole, full_matrices=False)
    best = (U[:, :rank] * S[:rank]) @ Vh[:rank]
    discarded = add_to_pair_(A, B, update, -0.7)
    assert torch.allclose((B @ A).double(), best, atol=1e-4)
    assert discarded.item() == pytest.approx(S[rank:].square().sum().item(), abs=1e-3)
    assert discarded.item() <= (0.49 * update.norm().square() * (1 + 1e-5)).item()
    # Both factors have the same share of the length.
    assert torch.allclose(A.norm(dim=1), B.norm(dim=0), atol=1e-4)


def test_an_empty_pair_takes_the_update_whole() -> None:
    A, B = torch.zeros(4, 20), torch.zeros(12, 4)
    update = LowRankGradient(torch.randn(12, 3), torch.randn(20, 3))
    discarded = add_to_pair_(A, B, update, 1.0)
    assert torch.allclose(B @ A, update.U @ update.V.T, atol=1e-5)
    assert discarded.item() < 1e-8
