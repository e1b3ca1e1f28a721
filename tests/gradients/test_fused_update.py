"""On a GPU, or anywhere with `pip install triton` and `TRITON_INTERPRET=1`."""

from __future__ import annotations

import os

import pytest
import torch


pytest.importorskip("triton")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)

from r2f_hf.gradients import LowRankGradient, add_low_rank_
from r2f_hf.gradients.fused_update import add_rounded_


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROWS, COLUMNS, ALPHA = 100, 72, 1e-5


@pytest.fixture(params=[torch.bfloat16, torch.float16], ids=str)
def weight(request: pytest.FixtureRequest) -> torch.Tensor:
    # From fp16's subnormal numbers to weights of a usual size.
    size = torch.logspace(-7, -1, COLUMNS)
    return (torch.randn(ROWS, COLUMNS, generator=torch.manual_seed(0)) * size).to(DEVICE, request.param)


# One pass over the rank, and several.
@pytest.fixture(params=[5, 70])
def factors(request: pytest.FixtureRequest) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(ROWS, request.param).to(DEVICE), torch.randn(COLUMNS, request.param).to(DEVICE)


def unit(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Of the last place."""
    digits, smallest = (8, -133) if dtype == torch.bfloat16 else (11, -24)
    return torch.ldexp(torch.ones_like(exact), (torch.frexp(exact).exponent - digits).clamp_min(smallest))


def test_every_entry_is_a_neighbour_of_the_exact_sum_and_right_on_average(
    weight: torch.Tensor, factors: tuple[torch.Tensor, torch.Tensor]
) -> None:
    left, right = factors
    exact = weight.float() + ALPHA * left @ right.T
    # A sum in another order, beside a power of two or where it cancels the weight, is rounded otherwise.
    largest = unit(exact * (1 + 1e-5), weight.dtype) + 1e-5 * ALPHA * (left.abs() @ right.abs().T)
    draws, total = 256, torch.zeros_like(exact)
    for seed in range(draws):
        written = weight.clone()
        add_rounded_(written, left, right, ALPHA, seed * 2**33 + 7919 * seed, 0, 0, COLUMNS)
        assert ((written.float() - exact).abs() <= largest * 1.001).all()
        total += written.float()
    error = (total / draws - exact) / largest
    # The standard error of an entry's mean is at most half a unit over the root of the draws.
    assert error.abs().max() < 5 * 0.5 / draws**0.5
    assert error.mean().abs() < 5 * 0.5 / (draws * error.numel()) ** 0.5


def test_parts_are_written_as_the_whole_is(weight: torch.Tensor, factors: tuple[torch.Tensor, torch.Tensor]) -> None:
    left, right = factors
    whole, rows, columns = weight.clone(), weight.clone(), weight.clone()
    add_rounded_(whole, left, right, ALPHA, -5, 0, 0, COLUMNS)
    for part in (slice(33), slice(33, None)):
        add_rounded_(rows[part], left[part], right, ALPHA, -5, part.start or 0, 0, COLUMNS)
        add_rounded_(columns[:, part], left, right[part], ALPHA, -5, 0, part.start or 0, COLUMNS)
    assert torch.equal(rows, whole)
    assert torch.equal(columns, whole)
    add_rounded_(rows, left, right, ALPHA, -6, 0, 0, COLUMNS)
    add_rounded_(columns, left, right, ALPHA, -5, 0, 0, COLUMNS)
    assert not torch.equal(rows, columns)


def test_a_weight_that_is_stored_by_columns(weight: torch.Tensor, factors: tuple[torch.Tensor, torch.Tensor]) -> None:
    left, right = factors
    expected, turned = weight.clone(), weight.T.contiguous().T
    for each in (expected, turned):
        add_rounded_(each, left, right, ALPHA, 7, 0, 0, COLUMNS)
    # But for entries that a sum in another order brings to the other side of their random number.
    assert (turned != expected).float().mean() < 1e-3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("transposed", [False, True])
def test_weights_on_a_gpu_are_written_so(
    transposed: bool, weight: torch.Tensor, factors: tuple[torch.Tensor, torch.Tensor]
) -> None:
    gradient = LowRankGradient(*factors)
    expected = weight.clone()
    generator = torch.Generator("cuda").manual_seed(11)
    if transposed:
        add_rounded_(expected.T, gradient.V, gradient.U, ALPHA, 11, 0, 0, ROWS)
        add_low_rank_(weight.T, gradient, ALPHA, transposed=True, generator=generator)
    else:
        add_rounded_(expected, gradient.U, gradient.V, ALPHA, 11, 0, 0, COLUMNS)
        add_low_rank_(weight, gradient, ALPHA, generator=generator)
    assert torch.equal(weight, expected)
