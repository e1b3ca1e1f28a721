"""On a GPU, or anywhere with `pip install triton` and `TRITON_INTERPRET=1`."""

from __future__ import annotations

import os

import pytest
import torch


pytest.importorskip("triton")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)

from r2f_hf.gradients.fused_update import add_rounded_


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROWS, COLUMNS, RANK, ALPHA = 100, 72, 5, 1e-5


@pytest.fixture(params=[torch.bfloat16, torch.float16], ids=str)
def weight(request: pytest.FixtureRequest) -> torch.Tensor:
    # From fp16's subnormal numbers to weights of a usual size.
    size = torch.logspace(-7, -1, COLUMNS)
    return (torch.randn(ROWS, COLUMNS, generator=torch.manual_seed(0)) * size).to(DEVICE, request.param)


@pytest.fixture
def factors() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(ROWS, RANK).to(DEVICE), torch.randn(COLUMNS, RANK).to(DEVICE)


def unit(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Of the last place."""
    digits, smallest = (8, -133) if dtype == torch.bfloat16 else (11, -24)
    return torch.ldexp(torch.ones_like(exact), (torch.frexp(exact).exponent - digits).clamp_min(smallest))


def test_every_entry_is_a_neighbour_of_the_exact_sum_and_right_on_average(
    weight: torch.Tensor, factors: tuple[torch.Tensor, torch.Tensor]
) -> None:
    left, right = factors
    exact = weight.float() + ALPHA * left @ right.T
    draws, total = 256, torch.zeros_like(exact)
    for seed in range(draws):
        written = weight.clone()
        add_rounded_(written, left, right, ALPHA, seed * 2**33 + 7919 * seed, 0, 0, COLUMNS)
        assert ((written.float() - exact).abs() <= unit(exact, weight.dtype) * 1.001).all()
        total += written.float()
    error = (total / draws - exact) / unit(exact, weight.dtype)
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
