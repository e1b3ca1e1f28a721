"""Decompositions of small matrices, many at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function


# With fewer matrices per thread, starting a further thread takes longer than it saves.
_LEAST_PER_THREAD = 16


@contextmanager
def one_thread() -> Iterator[int]:
    """
    Let LAPACK work only in this thread. Yields the number of threads that torch uses otherwise.

    With several threads, LAPACK divides each column of each matrix among them, and they wait for each other longer
    than they compute. With two threads, a stack of 32 x 32 matrices takes twice as long as with one. It takes up to a
    hundred times as long where other processes need the cores too.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def shared_out(function: Callable[[Tensor], Sequence[Tensor]], matrices: Tensor) -> tuple[Tensor, ...]:
    """Decompose matrices of shape `(..., m, n)`. On a CPU, each thread takes some of them, one matrix at a time."""
    with one_thread() as threads:
        few = matrices.shape[:-2].numel() < threads * _LEAST_PER_THREAD
        if few or threads == 1 or matrices.device.type != "cpu":
            return tuple(function(matrices))
        stack = matrices.flatten(end_dim=-3)
        with ThreadPoolExecutor(threads) as pool:
            factors = zip(*pool.map(function, stack.chunk(threads)), strict=True)
        return tuple(torch.cat(parts).unflatten(0, matrices.shape[:-2]) for parts in factors)


def eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """[`torch.linalg.eigh`] of small matrices of shape `(..., n, n)`."""
    return shared_out(torch.linalg.eigh, matrices)


def svd(matrices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[`torch.linalg.svd`] of small matrices of shape `(..., m, n)`, with `min(m, n)` singular vectors per side."""
    return shared_out(partial(torch.linalg.svd, full_matrices=False), matrices)


def double_gram(columns: Tensor) -> Tensor:
    """Gram matrix in fp64, in which no square of an fp32 number over- or underflows."""
    columns = columns.double()
    return columns.mT @ columns


def on_all(function: Callable[..., Sequence[Tensor]], stacks: Sequence[Sequence[Tensor]]) -> list[tuple[Tensor, ...]]:
    """
    Call a function of small matrices once for several stacks of them.

    Once the sketches of a model's modules are multiplied together, the products are small, and they have one size
    whatever the shapes of the modules. On a GPU, a small operation takes as long for all of them as for a few.

    Args:
        function (`Callable`):
            A function of tensors whose first dimension counts the matrices. It returns tensors of the same kind.
        stacks (`Sequence[Sequence[torch.Tensor]]`):
            The arguments for each stack. The first argument is matrices, and all arguments of a stack have its leading
            dimensions.

    Returns:
        `list[tuple[torch.Tensor, ...]]`: The results for each stack, with its leading dimensions.
    """
    places: dict[Any, list[int]] = {}
    leading = [stack[0].shape[:-2] for stack in stacks]
    for index, (stack, lead) in enumerate(zip(stacks, leading, strict=True)):
        key = (stack[0].device, *(tensor.shape[len(lead) :] for tensor in stack))
        places.setdefault(key, []).append(index)
    results: dict[int, tuple[Tensor, ...]] = {}
    for (_, *shapes), indices in places.items():
        together = (
            torch.cat([tensor.reshape(-1, *shape) for tensor in tensors])
            for shape, tensors in zip(shapes, zip(*(stacks[index] for index in indices), strict=True), strict=True)
        )
        counts = [leading[index].numel() for index in indices]
        for index, *pieces in zip(indices, *(result.split(counts) for result in function(*together)), strict=True):
            results[index] = tuple(piece.reshape((*leading[index], *piece.shape[1:])) for piece in pieces)
    return [results[index] for index in range(len(stacks))]


def on_cpu(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate tensors on the CPU. Tensors that all lie on one device take one transfer."""
    # The host waits here for all that the device still has to do. A test counts these places by the label.
    with record_function("r2f/to_host"):
        if len({tensor.device for tensor in tensors}) == 1:
            return torch.cat(list(tensors)).cpu()
        return torch.cat([tensor.cpu() for tensor in tensors])


def together_on_cpu(groups: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """[`on_cpu`] for several groups of tensors, in one transfer. They come back in fp64, as `(numbers,)` each."""
    flat = [tensor.double().flatten() for group in groups for tensor in group]
    counts = [sum(tensor.numel() for tensor in group) for group in groups]
    return list(on_cpu(flat).split(counts))
