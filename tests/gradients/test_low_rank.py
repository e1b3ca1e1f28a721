"""Factored gradients against the dense matrices that they stand for."""

from __future__ import annotations

import pytest
import torch

from r2f_hf.gradients import LowRankGradient


def draw(seed: int, rank: int) -> tuple[LowRankGradient, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    U = torch.randn(12, rank, generator=generator)
    V = torch.randn(7, rank, generator=generator)
    return LowRankGradient(U, V), U @ V.T


@pytest.mark.parametrize("rank", [1, 5])
def test_operations_equal_those_on_dense_matrices(rank: int) -> None:
    first, dense = draw(0, rank)
    second, other = draw(1, 3)
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(first.norm(), dense.norm())
    torch.testing.assert_close(first.inner(second), (dense * other).sum())
    torch.testing.assert_close(first.matmul(x), dense @ x)


def test_norm_of_a_difference_that_cancels_is_not_nan() -> None:
    """With other factors of the same matrix, its sum of squares comes out a rounding error above or below zero."""
    squares = []
    for seed in range(20):
        gradient, dense = draw(seed, 4)
        Q, _ = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(seed)))
        difference = LowRankGradient(
            torch.cat([gradient.U, -gradient.U @ Q], dim=1), torch.cat([gradient.V, gradient.V @ Q], dim=1)
        )
        squares.append(difference.inner(difference))
        assert difference.norm().item() == pytest.approx(0, abs=1e-2 * dense.norm().item())
    assert min(squares) < 0
