"""Writing a factored update into a half-precision weight in one pass over it, on a GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


# What one program of the kernel writes, and how much of the factors it holds at a time.
_TILE, _RANKS = 64, 32


@triton.jit(do_not_specialize=["seed_low", "seed_high", "row", "column"])
def _add_low_rank_kernel(
    weight,
    left,
    right,
    alpha,
    seed_low,
    seed_high,
    rows,
    columns,
    row_stride,
    column_stride,
    row,
    column,
    width,
    RANK: tl.constexpr,
    RANKS: tl.constexpr,
    TILE: tl.constexpr,
    HALF: tl.constexpr,
):
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)[:, None]
    j = tl.program_id(1) * TILE + tl.arange(0, TILE)[None, :]
    change = tl.zeros((TILE, TILE), dtype=tl.float32)
    for start in range(0, RANK, RANKS):
        k = start + tl.arange(0, RANKS)
        U = tl.load(left + i * RANK + k[None, :], mask=(i < rows) & (k[None, :] < RANK), other=0.0)
        V = tl.load(right + j * RANK + k[:, None], mask=(j < columns) & (k[:, None] < RANK), other=0.0)
        change = tl.dot(U, V, change, input_precision="ieee")
    place = weight + i.to(tl.int64) * row_stride + j.to(tl.int64) * column_stride
    inside = (i < rows) & (j < columns)
    exact = tl.load(place, mask=inside, other=0.0).to(tl.float32) + alpha * change
    # MurmurHash3's finalizer of an entry's number in the whole weight: 16 bits that are the same whoever holds it.
    bits = ((row + i) * width + column + j).to(tl.uint32) ^ seed_low.to(tl.uint32)
    bits = (bits ^ (bits >> 16)) * 0x85EBCA6B
    bits = ((bits ^ (bits >> 13)) ^ seed_high.to(tl.uint32)) * 0xC2B2AE35
    noise = ((bits ^ (bits >> 16)) & 0xFFFF).to(tl.int32)
    number = exact.to(tl.int32, bitcast=True)
    if HALF:
        # See `stochastic_round`: units are those of fp16's own exponent, and of its subnormal numbers.
        exponent = tl.maximum(((number >> 23) & 0xFF) - 127 - 10, -24)
        unit = ((127 + exponent) << 23).to(tl.float32, bitcast=True)
        scaled = exact * ((127 - exponent) << 23).to(tl.float32, bitcast=True)
        below = tl.floor(scaled)
        up = noise.to(tl.float32) < (scaled - below) * 65536
        rounded = (below + up.to(tl.float32)) * unit
        tl.store(place, rounded.to(tl.float16), mask=inside)
    else:
        rounded = ((number + noise) & -65536).to(tl.float32, bitcast=True)
        tl.store(place, rounded.to(tl.bfloat16), mask=inside)


def add_rounded_(
    values: Tensor, left: Tensor, right: Tensor, alpha: float, seed: int, row: int, column: int, width: int
) -> None:
    """
    In-place `values += alpha * left @ right.T` in fp32, rounded stochastically. Of each entry 2 bytes are read and 2
    written, and nothing of the weight's size is allocated.

    Args:
        values (`torch.Tensor` of shape `(rows, columns)`):
            A part of a weight, bf16 or fp16.
        left (`torch.Tensor` of shape `(rows, k)`):
            fp32.
        right (`torch.Tensor` of shape `(columns, k)`):
            fp32.
        alpha (`float`):
            Signed step.
        seed (`int`):
            Of the rounding, 64 bits.
        row (`int`):
            Row of the weight that the part begins at.
        column (`int`):
            Column that it begins at.
        width (`int`):
            Columns of the weight.
    """
    rows, columns = values.shape
    high, low = (half - 2**31 for half in divmod(seed % 2**64, 2**32))
    with torch.cuda.device_of(values):
        _add_low_rank_kernel[triton.cdiv(rows, _TILE), triton.cdiv(columns, _TILE)](
            values,
            left.contiguous(),
            right.contiguous(),
            alpha,
            low,
            high,
            rows,
            columns,
            *values.stride(),
            row,
            column,
            width,
            RANK=left.shape[1],
            RANKS=_RANKS,
            TILE=_TILE,
            HALF=values.dtype == torch.float16,
        )
