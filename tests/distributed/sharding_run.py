"""Writes into weights that ZeRO-3 has partitioned over any number of processes, for test_sharding.py."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from r2f_hf.distributed import copy_, gather, own_blocks
from r2f_hf.gradients import LowRankGradient
from r2f_hf.updates import add_low_rank_


SHAPES = [(5, 7), (7, 5), (1, 16), (2, 3), (600, 700)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def draw(shape: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, LowRankGradient]:
    """A weight, and what is to be added to it."""
    generator = torch.Generator().manual_seed(shape[0])
    rows, columns = (torch.randn(size, 3, generator=generator) for size in shape)
    return torch.randn(shape, generator=generator).to(dtype), LowRankGradient(rows, columns)


def write(weight: Tensor, gradient: LowRankGradient, transposed: bool) -> None:
    """Add it, with the same random numbers each time."""
    if transposed:
        gradient = LowRankGradient(gradient.V, gradient.U)
    add_low_rank_(weight, gradient, 1e-3, transposed, torch.Generator().manual_seed(0))


if __name__ == "__main__":
    import deepspeed

    deepspeed.init_distributed("gloo")
    rank, count = torch.distributed.get_rank(), torch.distributed.get_world_size()
    found = {}
    for shape in SHAPES:
        for dtype in DTYPES:
            for transposed in (False, True):
                weight, gradient = draw(shape, dtype)
                module = nn.ParameterDict({"weight": nn.Parameter(torch.zeros_like(weight), requires_grad=False)})
                deepspeed.zero.Init(module, config_dict_or_path={"train_batch_size": count})
                copy_(module["weight"], weight)
                blocks = own_blocks(module["weight"])
                for turn in range(count):
                    # One process after the other, so that no other process could answer a message.
                    if turn == rank:
                        write(module["weight"], gradient, transposed)
                    torch.distributed.barrier()
                whole = gather({"weight": module["weight"]})["weight"]
                own = [(values.clone(), row, column) for values, row, column in blocks]
                found[shape, dtype, transposed] = {"whole": whole, "own": own}
    torch.save(found, Path(sys.argv[1]) / f"process{rank}.pt")
    torch.distributed.destroy_process_group()
