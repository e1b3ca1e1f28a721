"""The Triton kernel, on a GPU, or anywhere with `pip install triton` and `TRITON_INTERPRET=1`."""

from __future__ import annotations

import os

import pytest
import torch


pytest.importorskip("triton")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)

from r2f_hf.gradients import LowRankGradient
from r2f_hf.updates import add_low_rank_all_, triton_kernel


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


def add_rounded_(
    weight: torch.Tensor, left: torch.Tensor, right: torch.Tensor, seed: int, row: int = 0, column: int = 0
) -> None:
    """Update a single weight."""
    triton_kernel.add_rounded_([weight], [0], left[None], right[None], [ALPHA], [seed], row, column, COLUMNS)


def unit(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The unit in the last place of each number."""
    digits, smallest = (8, -133) if dtype == torch.bfloat16 else (11, -24)
    return torch.ldexp(torch.ones_like(exact), (torch.frexp(exact).exponent - digits).clamp_min(smallest))


def test_every_entry_is_a_neighbour_of_the_exact_sum_and_right_on_average(
    weight: torch.Tensor, factors: tuple[torch.Tensor, torch.Tensor]
) -> None:
    left, right = factors
    exact = weight.float() + ALPHA * left @ right.T
    # Next to a power of two, or where it cancels the weight, a sum in another order is rounded differently.
    largest = unit(exact * (1 + 1e-5), weight.dtype) + 1e-5 * ALPHA * (left.abs() @ right.abs().T)
    draws, total = 256, torch.zeros_like(exact)
    for seed in range(draws):
        written = weight.clone()
        add_rounded_(written, left, right, seed * 2**33 + 7919 * seed)
        assert ((written.float() - exact).abs() <= largest * 1.001).all()
        total += written.float()
    error = (total / draws - exact) / largest
    # The standard error of an entry's mean is at most half a unit over the root of the draws.
    assert error.abs().max() < 5 * 0.5 / draws**0.5
    assert error.mean().abs() < 5 * 0.5 / (draws * error.numel()) ** 0.5


def test_parts_are_written_as_the_whole_is(weight: torch.Tensor, factors: tuple[torch.Tensor, torch.Tensor]) -> None:
    left, right = factors
    whole, rows, columns = weight.clone(), weight.clone(), weight.clone()
    add_rounded_(whole, left, right, -5)
    for part in (slice(33), slice(33, None)):
        add_rounded_(rows[part], left[part], right, -5, row=part.start or 0)
        add_rounded_(columns[:, part], left, right[part], -5, column=part.start or 0)
    for parts in (rows, columns):
        if DEVICE == "cuda":
            assert torch.equal(parts, whole)
        # In the interpreter numpy computes the sums, in an order that depends on the place in a tile.
        assert (parts != whole).float().mean() < 1e-3
    add_rounded_(rows, left, right, -6)
    add_rounded_(columns, left, right, -5)
    assert not torch.equal(rows, columns)


def test_a_weight_that_is_stored_by_columns(weight: torch.Tensor, factors: tuple[torch.Tensor, torch.Tensor]) -> None:
    left, right = factors
    expected, turned = weight.clone(), weight.T.contiguous().T
    for each in (expected, turned):
        add_rounded_(each, left, right, 7)
    # Only where a sum in another order falls on the other side of the random number, entries differ.
    assert (turned != expected).float().mean() < 1e-3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("transposed", [False, True])
def test_weights_on_a_gpu_are_written_so_in_one_launch(
    transposed: bool, weight: torch.Tensor, factors: tuple[torch.Tensor, torch.Tensor]
) -> None:
    left, right = factors
    weights = [weight.clone(), 2 * weight, weight.clone()]
    alphas, seeds = [ALPHA, 0.0, -ALPHA], [11, 12, 2**63 - 13]
    gradients = LowRankGradient(torch.stack([left, left, 2 * left]), torch.stack([right, right, -right]))
    expected = [each.clone() for each in weights]
    for index in (0, 2):
        # A step of the other sign on a gradient of the other sign, and twice the size.
        U, V = (gradients.U[index], gradients.V[index] * (1 if alphas[index] > 0 else -1))
        if transposed:
            triton_kernel.add_rounded_([expected[index].T], [0], V[None], U[None], [ALPHA], [seeds[index]], 0, 0, ROWS)
        else:
            add_rounded_(expected[index], U, V, seeds[index])
    turned = [each.T if transposed else each for each in weights]
    add_low_rank_all_(turned, gradients, alphas, seeds, transposed)
    for mine, theirs in zip(weights, expected, strict=True):
        assert torch.equal(mine, theirs)
