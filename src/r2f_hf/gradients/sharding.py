"""Weights whose rows are shared out over processes (FSDP2's DTensors): each process writes its own rows alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor


def is_row_sharded(weight: Tensor) -> bool:
    """Whether a weight is whole, or shared out by rows, and not by columns or as partial sums."""
    return not isinstance(weight, DTensor) or all(
        isinstance(placement, Replicate) or placement == Shard(0) for placement in weight.placements
    )


def own_part(weight: Tensor, whole: Tensor) -> Tensor:
    """
    The part of a whole tensor that lies where this process's part of `weight` does. Nothing is sent.

    Args:
        weight (`torch.Tensor`):
            A weight, sharded or not.
        whole (`torch.Tensor`):
            A tensor with as many rows, the same on all processes.
    """
    if not isinstance(weight, DTensor):
        return whole
    return distribute_tensor(whole, weight.device_mesh, weight.placements, src_data_rank=None).to_local()


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
    whole: dict[int, Tensor | None] = {}
    for tensor in state_dict.values():
        # Weights that are tied stay so, and are gathered once on every process.
        if id(tensor) not in whole:
            found = tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor
            whole[id(tensor)] = found if keep else None
    return {name: whole[id(tensor)] for name, tensor in state_dict.items()} if keep else {}


@torch.no_grad()
def copy_(weight: Tensor, whole: Tensor) -> None:
    """Copy a whole tensor, the same on all processes, into a weight, sharded or not."""
    local = weight.to_local() if isinstance(weight, DTensor) else weight
    local.copy_(own_part(weight, whole.to(local.device)))
