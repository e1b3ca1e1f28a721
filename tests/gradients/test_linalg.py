"""Small decompositions: the results are torch's own, and the number of threads stays as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from r2f_hf.gradients import eigh, on_all, svd
from r2f_hf.gradients.linalg import one_thread


@pytest.fixture
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("two_threads")
def test_they_are_torchs_own_and_leave_the_threads_as_they_were() -> None:
    matrices = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    U, S, Vh = svd(matrices)
    torch.testing.assert_close(U * S.unsqueeze(-2) @ Vh, matrices)
    values, vectors = eigh(matrices.mT @ matrices)
    torch.testing.assert_close(values.flip(-1), S.square())
    torch.testing.assert_close(vectors * values.unsqueeze(-2) @ vectors.mT, matrices.mT @ matrices)
    with pytest.raises(RuntimeError):
        eigh(matrices)
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_many_are_shared_out_among_the_threads() -> None:
    matrices = torch.randn(3, 25, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for mine, theirs in zip(svd(matrices), torch.linalg.svd(matrices, full_matrices=False), strict=True):
        torch.testing.assert_close(mine, theirs)
    # Threads must not record an autograd graph where the caller records none.
    grams = (matrices.mT @ matrices).requires_grad_()
    with torch.no_grad():
        assert not any(found.requires_grad for found in eigh(grams))
    with pytest.raises(RuntimeError):
        eigh(matrices)
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_one_thread_is_one() -> None:
    with one_thread() as threads:
        assert torch.get_num_threads() == 1
    assert threads == 2


def test_several_stacks_are_one_call_per_size_and_come_back_as_they_were() -> None:
    generator = torch.Generator().manual_seed(0)
    leading = [(2,), (), (3, 2), (4,)]
    sizes = [(5, 4), (5, 4), (5, 4), (3, 3)]
    stacks = [
        (torch.randn((*lead, *size), generator=generator), torch.randn(lead, generator=generator))
        for lead, size in zip(leading, sizes, strict=True)
    ]
    calls = []

    def scaled_svd(matrices: torch.Tensor, factors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(tuple(matrices.shape))
        return svd(matrices)[1] * factors.unsqueeze(-1), matrices

    found = on_all(scaled_svd, stacks)
    assert calls == [(2 + 1 + 6, 5, 4), (4, 3, 3)]
    for (matrices, factors), (values, same) in zip(stacks, found, strict=True):
        torch.testing.assert_close(values, svd(matrices)[1] * factors.unsqueeze(-1))
        assert torch.equal(same, matrices)
