"""Second moments: from a gradient's factors, what Adafactor keeps of the dense gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from r2f_hf.gradients import LowRankGradient
from r2f_hf.updates import SecondMoments


def gradient(seed: int, out: int = 12, into: int = 9, rank: int = 3) -> LowRankGradient:
    generator = torch.Generator().manual_seed(seed)
    return LowRankGradient(torch.randn(out, rank, generator=generator), torch.randn(into, rank, generator=generator))


def dense(found: LowRankGradient) -> Tensor:
    return found.U @ found.V.T


def rescaled(G: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return G / (rows / rows.mean()).sqrt()[:, None] / (columns / columns.mean()).sqrt()


def test_the_moments_are_those_of_the_dense_gradients() -> None:
    first, second = gradient(0), gradient(1)
    moments = SecondMoments.after(first, None)
    torch.testing.assert_close(moments.rows, dense(first).square().mean(1))
    moments = SecondMoments.after(second, moments)
    squares = 0.9 * dense(first).square() + 0.1 * dense(second).square()
    torch.testing.assert_close(moments.rows, squares.mean(1))
    torch.testing.assert_close(moments.columns, squares.mean(0))
    torch.testing.assert_close(
        dense(moments.scale(second)), rescaled(dense(second), moments.rows, moments.columns), rtol=1e-4, atol=1e-5
    )


def test_where_rows_and_columns_give_all_sizes_only_signs_are_left() -> None:
    plain = gradient(0, rank=1)
    even = dense(SecondMoments.after(plain, None).scale(plain))
    torch.testing.assert_close(even, even.abs().mean() * dense(plain).sign(), rtol=1e-4, atol=0)


def test_a_row_of_next_to_nothing_is_not_blown_up() -> None:
    plain = gradient(0)
    plain.U[3] *= 1e-12
    scaled = SecondMoments.after(plain, None).scale(plain)
    assert dense(scaled)[3].norm() < 1e-9 * dense(scaled).norm()


def test_a_gradient_of_zero_stays_zero() -> None:
    zero = LowRankGradient(torch.zeros(4, 2), torch.zeros(5, 2))
    moments = SecondMoments.after(zero, SecondMoments.after(zero, None))
    assert not dense(moments.scale(zero)).any() and dense(moments.scale(zero)).isfinite().all()
