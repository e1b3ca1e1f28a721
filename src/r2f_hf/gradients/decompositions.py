"""Decompositions of small matrices, many at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def one_thread() -> Iterator[None]:
    """
    Let LAPACK work in this thread alone.

    With several it shares out each column of each matrix, and the threads wait for each other longer than they
    compute: with two a stack of 32 x 32 matrices takes twice as long as with one, and up to a hundred times as long
    where other processes need the cores too.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """[`torch.linalg.eigh`] of small matrices of shape `(..., n, n)`."""
    with one_thread():
        return torch.linalg.eigh(matrices)


def svd(matrices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[`torch.linalg.svd`] of small matrices of shape `(..., m, n)`, without the vectors of what is not there."""
    with one_thread():
        return torch.linalg.svd(matrices, full_matrices=False)
