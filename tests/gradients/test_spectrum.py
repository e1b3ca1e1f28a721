"""The spectrum of a gradient is damped as its definition says, whatever the factors look like."""

from __future__ import annotations

import pytest
import torch

from r2f_hf.gradients import LowRankGradient
from r2f_hf.gradients.spectrum import damp_spectra


def gradient(rank: int, seed: int = 0, modules: int = 2) -> LowRankGradient:
    generator = torch.Generator().manual_seed(seed)
    return LowRankGradient(
        torch.randn(modules, 30, rank, generator=generator), torch.randn(modules, 20, rank, generator=generator)
    )


@pytest.mark.parametrize("damping", [0.0, 0.25, 0.5, 1.0])
def test_singular_values_are_damped_and_the_norm_stays(damping: float) -> None:
    before = gradient(5)
    (after,) = damp_spectra([before], damping)
    U, S, Vt = torch.linalg.svd((before.U @ before.V.mT).double(), full_matrices=False)
    powers = torch.zeros_like(S)
    powers[:, :5] = S[:, :5] ** (1 - 2 * damping)
    powers *= S.norm(dim=1, keepdim=True) / powers.norm(dim=1, keepdim=True)
    expected = U * powers[:, None] @ Vt
    torch.testing.assert_close((after.U @ after.V.mT).double(), expected, rtol=1e-4, atol=1e-4)


def test_half_makes_all_directions_equal_even_if_a_factor_is_deficient() -> None:
    before = gradient(6)
    # A decoder gives such columns where a gradient has a low rank.
    before.U[..., 4] = before.U[..., 3]
    before.V[..., 5] = 0
    (after,) = damp_spectra([before], 0.5)
    values = torch.linalg.svdvals(after.U @ after.V.mT)
    rank = int(torch.linalg.matrix_rank(before.U[0] @ before.V[0].T))
    assert rank == 4 or rank == 5
    torch.testing.assert_close(values[:, :rank], values[:, :1].expand(-1, rank), rtol=1e-4, atol=1e-5)
    assert values[:, rank:].max() < 1e-4


def test_zeros_stay_zeros_and_shapes_may_differ() -> None:
    zero = LowRankGradient(torch.zeros(1, 7, 3), torch.zeros(1, 9, 3))
    found, other = damp_spectra([zero, gradient(3)], 0.5)
    assert torch.equal(found.U @ found.V.mT, torch.zeros(1, 7, 9))
    assert other.U.isfinite().all() and other.norm().min() > 0
