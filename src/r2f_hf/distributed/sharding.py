"""Weights that are shared out over processes, by rows (FSDP2) or in flat pieces (ZeRO-3): each writes its own part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
            Where it begins.
        column (`int`):
            Where it begins.
    """

    values: Tensor
    row: int
    column: int


def is_row_sharded(weight: Tensor) -> bool:
    """Whether a weight is whole, or shared out by rows, and not by columns or as partial sums."""
    return not isinstance(weight, DTensor) or all(
        isinstance(placement, Replicate) or placement == Shard(0) for placement in weight.placements
    )


def is_partitioned(weight: Tensor) -> bool:
    """Whether DeepSpeed's ZeRO-3 has shared a weight out; it is empty then, or a copy that comes and goes."""
    return hasattr(weight, "ds_tensor")


def whole_shape(weight: Tensor) -> torch.Size:
    """The shape of a weight, shared out or not."""
    return weight.ds_shape if is_partitioned(weight) else weight.shape


def local(weight: Tensor) -> Tensor:
    """This process's part of a weight: all of it, some rows, or a flat piece of it without the padding at its end."""
    if isinstance(weight, DTensor):
        return weight.to_local()
    if is_partitioned(weight):
        begin, end = _flat_range(weight)
        return weight.ds_tensor[: end - begin]
    return weight


def _flat_range(weight: Tensor) -> tuple[int, int]:
    size = weight.ds_tensor.ds_numel
    begin = size * weight.ds_zero_partition_rank
    return min(begin, weight.ds_numel), min(begin + size, weight.ds_numel)


def own_part(weight: Tensor, whole: Tensor) -> Tensor:
    """
    The part of a whole tensor that lies where this process's part of `weight` does. Nothing is sent.

    Args:
        weight (`torch.Tensor`):
            A weight, shared out or not.
        whole (`torch.Tensor`):
            A tensor with as many rows (of ZeRO-3's weights: of the same shape), the same on all processes.
    """
    if isinstance(weight, DTensor):
        return distribute_tensor(whole, weight.device_mesh, weight.placements, src_data_rank=None).to_local()
    if is_partitioned(weight):
        begin, end = _flat_range(weight)
        return whole.flatten()[begin:end]
    return whole


def own_blocks(weight: Tensor) -> list[Block]:
    """The rectangles of a matrix that lie in this process: one, or of a flat piece also the ends of broken rows."""
    own = local(weight)
    if isinstance(weight, DTensor):
        held = own_part(weight, torch.arange(weight.shape[0]))
        return [Block(own, int(held[0]), 0)] if len(held) else []
    if not is_partitioned(weight):
        return [Block(own, 0, 0)]
    width = weight.ds_shape[1]
    begin, end = _flat_range(weight)
    blocks = []
    while begin < end:
        row, column = divmod(begin, width)
        # Up to the end of a row that is broken, or over all whole rows.
        count = min(width - column, end - begin) if column or end - begin < width else (end - begin) // width * width
        blocks.append(Block(own[:count].view(-1, min(count, width)), row, column))
        own, begin = own[count:], begin + count
    return blocks


@torch.no_grad()
def gathered(tensor: Tensor) -> Tensor:
    """A tensor from all processes' parts of it, or itself. All processes have to call it, where it is shared out."""
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
    Whole weights from sharded ones. All processes have to call it, where any weight is sharded.

    Args:
        state_dict (`Mapping[str, torch.Tensor]`):
            The weights, by name; tied ones are the same object.
        keep (`bool`, *optional*, defaults to `True`):
            Whether this process wants them; one that does not holds one weight at a time.

    Returns:
        `dict[str, torch.Tensor]`: What was sharded is on the CPU, the rest as it was; empty without `keep`.
    """
    found: dict[int, Tensor | None] = {}
    for tensor in state_dict.values():
        # Weights that are tied stay so, and are gathered once on every process.
        if id(tensor) not in found:
            one = gathered(tensor).cpu() if is_sharded(tensor) else tensor
            found[id(tensor)] = one if keep else None
    return {name: found[id(tensor)] for name, tensor in state_dict.items()} if keep else {}


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is shared out over processes."""
    return isinstance(tensor, DTensor) or is_partitioned(tensor)


@torch.no_grad()
def copy_(weight: Tensor, source: Tensor) -> None:
    """
    Copy a tensor into a weight, shared out or not. Nothing is sent, unless the source alone is shared out.

    Args:
        weight (`torch.Tensor`):
            The weight.
        source (`torch.Tensor`):
            A whole tensor, the same on all processes, or one that is shared out as the weight is.
    """
    own = local(weight)
    alike = is_partitioned(source) and is_partitioned(weight)
    own.copy_(local(source) if alike else own_part(weight, gathered(source).to(own.device)))
    if is_partitioned(weight):
        # Or a copy that is there would be used on.
        weight.partition()


@torch.no_grad()
def copy_all_(weights: Sequence[Tensor], sources: Tensor) -> None:
    """As [`copy_`], one source of shape `(len(weights), ...)` after the other; of whole weights in one go."""
    if any(is_sharded(weight) for weight in weights):
        for weight, source in zip(weights, sources, strict=True):
            copy_(weight, source)
    else:
        torch._foreach_copy_(list(weights), list(sources))
