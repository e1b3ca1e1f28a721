"""Weights sharded over processes by rows (FSDP2) or in flat pieces (ZeRO-3). Each process writes its own part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor


class Block(NamedTuple):
    """
    A rectangle of a weight that lies in this process.

    Args:
        values (`torch.Tensor` of shape `(rows, columns)`):
            The weight's own memory.
        row (`int`):
            Row of the weight at which it begins.
        column (`int`):
            Column of the weight at which it begins.
    """

    values: Tensor
    row: int
    column: int


def is_row_sharded(weight: Tensor) -> bool:
    """Whether a weight is whole or sharded by rows. Sharding by columns and partial sums do not count."""
    return not isinstance(weight, DTensor) or all(
        isinstance(placement, Replicate) or placement == Shard(0) for placement in weight.placements
    )


def is_partitioned(weight: Tensor) -> bool:
    """Whether DeepSpeed's ZeRO-3 has partitioned a weight. It is then empty, or holds a copy only for a while."""
    return hasattr(weight, "ds_tensor")


def whole_shape(weight: Tensor) -> torch.Size:
    """The shape of the whole weight, sharded or not."""
    return weight.ds_shape if is_partitioned(weight) else weight.shape


def local(weight: Tensor) -> Tensor:
    """This process's part of a weight: all of it, some rows, or a flat piece without the padding at its end."""
    if isinstance(weight, DTensor):
        return weight.to_local()
    if is_partitioned(weight):
        begin, end = _flat_range(weight)
        return weight.ds_tensor[: end - begin]
    return weight


def _flat_range(weight: Tensor) -> tuple[int, int]:
    """Where this process's piece of a partitioned weight begins and ends in the flattened weight."""
    size = weight.ds_tensor.ds_numel
    begin = size * weight.ds_zero_partition_rank
    return min(begin, weight.ds_numel), min(begin + size, weight.ds_numel)


def own_part(weight: Tensor, whole: Tensor) -> Tensor:
    """
    The part of a whole tensor that belongs to this process's part of `weight`. Nothing is sent.

    Args:
        weight (`torch.Tensor`):
            A weight, sharded or not.
        whole (`torch.Tensor`):
            A tensor with as many rows as the weight (under ZeRO-3: of the same shape), equal on all processes.
    """
    if isinstance(weight, DTensor):
        return distribute_tensor(whole, weight.device_mesh, weight.placements, src_data_rank=None).to_local()
    if is_partitioned(weight):
        begin, end = _flat_range(weight)
        return whole.flatten()[begin:end]
    return whole


def own_blocks(weight: Tensor) -> list[Block]:
    """The rectangles of a matrix that lie in this process: one, or up to three if a flat piece breaks rows."""
    values = local(weight)
    if isinstance(weight, DTensor):
        held = own_part(weight, torch.arange(weight.shape[0]))
        return [Block(values, int(held[0]), 0)] if len(held) else []
    if not is_partitioned(weight):
        return [Block(values, 0, 0)]
    width = weight.ds_shape[1]
    begin, end = _flat_range(weight)
    blocks = []
    while begin < end:
        row, column = divmod(begin, width)
        # To the end of a broken row, or over all whole rows.
        count = min(width - column, end - begin) if column or end - begin < width else (end - begin) // width * width
        blocks.append(Block(values[:count].view(-1, min(count, width)), row, column))
        values, begin = values[count:], begin + count
    return blocks


@torch.no_grad()
def gathered(tensor: Tensor) -> Tensor:
    """The whole tensor, from the parts of all processes. Where it is sharded, all processes have to call this."""
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    if is_partitioned(tensor):
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().clone()
    return tensor


@torch.no_grad()
def gather(state_dict: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """
    Gather sharded weights into whole ones. If any weight is sharded, all processes have to call this.

    Args:
        state_dict (`Mapping[str, torch.Tensor]`):
            The weights by name. Tied weights are the same object.
        keep (`bool`, *optional*, defaults to `True`):
            Whether this process keeps them. A process that does not holds only one whole weight at a time.

    Returns:
        `dict[str, torch.Tensor]`: Sharded weights, whole and on the CPU; other weights as they were. Empty without
        `keep`.
    """
    whole: dict[int, Tensor | None] = {}
    for tensor in state_dict.values():
        # Tied weights stay tied, and are gathered once on every process.
        if id(tensor) not in whole:
            weight = gathered(tensor).cpu() if is_sharded(tensor) else tensor
            whole[id(tensor)] = weight if keep else None
    return {name: whole[id(tensor)] for name, tensor in state_dict.items()} if keep else {}


def doubled(state_dict: Mapping[str, Tensor]) -> list[str]:
    """
    Names of tied weights that FSDP2 holds twice in a process: those whose rows it cannot share out evenly.

    FSDP2 pads its part of such a weight once per name. A change of the weight then reaches one of the copies only, and
    forward passes go on using the other (torch 2.13).

    Args:
        state_dict (`Mapping[str, torch.Tensor]`):
            The weights by name. Tied weights are the same object.
    """
    counts = Counter(map(id, state_dict.values()))
    return [name for name, tensor in state_dict.items() if counts[id(tensor)] > 1 and not _is_even(tensor)]


def _is_even(tensor: Tensor) -> bool:
    """Whether all processes hold equally many rows of a tensor."""
    if not isinstance(tensor, DTensor):
        return True
    sizes = zip(tensor.device_mesh.shape, tensor.placements, strict=True)
    return tensor.shape[0] % prod(size for size, placement in sizes if placement.is_shard(0)) == 0


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is sharded over processes."""
    return isinstance(tensor, DTensor) or is_partitioned(tensor)


@torch.no_grad()
def copy_(weight: Tensor, source: Tensor) -> None:
    """
    Copy a tensor into a weight, sharded or not. Nothing is sent, unless only the source is sharded.

    Args:
        weight (`torch.Tensor`):
            The weight.
        source (`torch.Tensor`):
            A whole tensor, equal on all processes, or one that is sharded in the same way as the weight.
    """
    values = local(weight)
    alike = is_partitioned(source) and is_partitioned(weight)
    values.copy_(local(source) if alike else own_part(weight, gathered(source).to(values.device)))
    if is_partitioned(weight):
        # Otherwise a gathered copy that is still there would go on being used.
        weight.partition()


@contextmanager
def whole_(weight: Tensor) -> Iterator[Tensor]:
    """
    The whole of a weight, sharded or not, to be changed in place. Afterwards each process keeps its own part of it.

    Where the weight is sharded, all processes have to enter this, and to make the same changes. Call
    `model.state_dict()` before: it shards what FSDP2 still has gathered from a forward pass. A change would be lost.

    Args:
        weight (`torch.Tensor`):
            The weight.
    """
    whole = gathered(weight)
    with torch.no_grad():
        yield whole
    if whole is not weight:
        copy_(weight, whole)


@torch.no_grad()
def copy_all_(weights: Sequence[Tensor], sources: Tensor) -> None:
    """[`copy_`] for several weights, from sources of shape `(len(weights), ...)`. Whole weights are copied at once."""
    if any(is_sharded(weight) for weight in weights):
        for weight, source in zip(weights, sources, strict=True):
            copy_(weight, source)
    else:
        torch._foreach_copy_(list(weights), list(sources))
