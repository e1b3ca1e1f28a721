"""Decompositions of small matrices, many at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor


# Fewer matrices take less time than another thread's start.
_LEAST_A_THREAD = 16


@contextmanager
def one_thread() -> Iterator[int]:
    """
    Let LAPACK work in this thread alone. Yields how many there are otherwise.

    With several it shares out each column of each matrix, and the threads wait for each other longer than they
    compute: with two a stack of 32 x 32 matrices takes twice as long as with one, and up to a hundred times as long
    where other processes need the cores too.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def shared_out(function: Callable[[Tensor], Sequence[Tensor]], matrices: Tensor) -> tuple[Tensor, ...]:
    """A decomposition of matrices of shape `(..., m, n)`: on a CPU each thread has its part of them, one by one."""
    with one_thread() as threads:
        few = matrices.shape[:-2].numel() < threads * _LEAST_A_THREAD
        if few or threads == 1 or matrices.device.type != "cpu":
            return tuple(function(matrices))
        stack = matrices.flatten(end_dim=-3)
        with ThreadPoolExecutor(threads) as pool:
            found = zip(*pool.map(function, stack.chunk(threads)), strict=True)
        return tuple(torch.cat(parts).unflatten(0, matrices.shape[:-2]) for parts in found)


def eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """[`torch.linalg.eigh`] of small matrices of shape `(..., n, n)`."""
    return shared_out(torch.linalg.eigh, matrices)


def svd(matrices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[`torch.linalg.svd`] of small matrices of shape `(..., m, n)`, without the vectors of what is not there."""
    return shared_out(partial(torch.linalg.svd, full_matrices=False), matrices)


def on_all(function: Callable[..., Sequence[Tensor]], stacks: Sequence[Sequence[Tensor]]) -> list[tuple[Tensor, ...]]:
    """
    A function of small matrices for several stacks of them in one call.

    What is left of a model's modules once their sketches are multiplied together is small, and of one size whatever
    the modules' shapes. On a GPU a small operation takes as long for all of them as for a few.

    Args:
        function (`Callable`):
            From tensors whose first dimension is the matrices', to others of the kind.
        stacks (`Sequence[Sequence[torch.Tensor]]`):
            The arguments of each stack. They have the same leading dimensions: those of the first, which is of
            matrices.

    Returns:
        `list[tuple[torch.Tensor, ...]]`: What the function returns for each stack, with its leading dimensions.
    """
    places: dict[Any, list[int]] = {}
    leading = [stack[0].shape[:-2] for stack in stacks]
    for index, (stack, lead) in enumerate(zip(stacks, leading, strict=True)):
        key = (stack[0].device, *(tensor.shape[len(lead) :] for tensor in stack))
        places.setdefault(key, []).append(index)
    found: dict[int, tuple[Tensor, ...]] = {}
    for (_, *shapes), indices in places.items():
        together = (
            torch.cat([tensor.reshape(-1, *shape) for tensor in tensors])
            for shape, tensors in zip(shapes, zip(*(stacks[index] for index in indices), strict=True), strict=True)
        )
        counts = [leading[index].numel() for index in indices]
        for index, *pieces in zip(indices, *(each.split(counts) for each in function(*together)), strict=True):
            found[index] = tuple(piece.reshape((*leading[index], *piece.shape[1:])) for piece in pieces)
    return [found[index] for index in range(len(stacks))]


def on_cpu(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors one after the other, on the CPU; one transfer for each device that they lie on."""
    if len({tensor.device for tensor in tensors}) == 1:
        return torch.cat(list(tensors)).cpu()
    return torch.cat([tensor.cpu() for tensor in tensors])
