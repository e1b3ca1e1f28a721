"""Writing factored updates into half-precision weights in one pass over them, on a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor


# Rows and columns that one program of the kernel writes, and columns of the factors that it holds at a time.
_TILE, _RANKS = 64, 32

# Products of about fp32's precision on tensor cores. Only NVIDIA's tensor cores can do this.
_PRECISION = "ieee" if torch.version.hip else "tf32x3"

# Bytes that a thread reads at once, if the memory is aligned to them.
_ALIGNMENT = 16


@triton.jit(do_not_specialize=["row", "column"])
def _add_low_rank_kernel(
    table,
    left,
    right,
    rows,
    columns,
    row_stride,
    column_stride,
    left_stride,
    right_stride,
    row,
    column,
    width,
    RANK: tl.constexpr,
    RANKS: tl.constexpr,
    TILE: tl.constexpr,
    HALF: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # The entry of a weight: its address, its index in the factors, its seed and the bits of its step size.
    entry = table + 4 * tl.program_id(2)
    address = tl.multiple_of(tl.load(entry), ALIGNMENT)
    weight = address.to(tl.pointer_type(tl.float16 if HALF else tl.bfloat16))
    module = tl.load(entry + 1)
    seed = tl.load(entry + 2)
    alpha = tl.load(entry + 3).to(tl.int32).to(tl.float32, bitcast=True)
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)[:, None]
    j = tl.program_id(1) * TILE + tl.arange(0, TILE)[None, :]
    left += module * left_stride
    right += module * right_stride
    change = tl.zeros((TILE, TILE), dtype=tl.float32)
    for start in range(0, RANK, RANKS):
        k = start + tl.arange(0, RANKS)
        U = tl.load(left + i * RANK + k[None, :], mask=(i < rows) & (k[None, :] < RANK), other=0.0)
        V = tl.load(right + j * RANK + k[:, None], mask=(j < columns) & (k[:, None] < RANK), other=0.0)
        change = tl.dot(U, V, change, input_precision=PRECISION)
    place = weight + i.to(tl.int64) * row_stride + j.to(tl.int64) * column_stride
    inside = (i < rows) & (j < columns)
    exact = tl.load(place, mask=inside, other=0.0).to(tl.float32) + alpha * change
    # MurmurHash3's finalizer, of an entry's number in the whole weight. So its 16 bits are the same whichever process
    # holds it.
    bits = ((row + i) * width + column + j).to(tl.uint32) ^ seed.to(tl.uint32)
    bits = (bits ^ (bits >> 16)) * 0x85EBCA6B
    bits = ((bits ^ (bits >> 13)) ^ (seed >> 32).to(tl.uint32)) * 0xC2B2AE35
    noise = ((bits ^ (bits >> 16)) & 0xFFFF).to(tl.int32)
    number = exact.to(tl.int32, bitcast=True)
    if HALF:
        # See `stochastic_round`: the unit is that of fp16's exponent, or that of its subnormal numbers.
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
    values: Sequence[Tensor],
    modules: Sequence[int],
    left: Tensor,
    right: Tensor,
    alphas: Sequence[float],
    seeds: Sequence[int],
    row: int,
    column: int,
    width: int,
) -> None:
    """
    In-place `values += alpha * left @ right.T` in fp32, rounded stochastically.

    It reads 2 bytes and writes 2 bytes per entry, and allocates nothing of the weights' size.

    Args:
        values (`Sequence[torch.Tensor]`):
            The same part of several weights, each of shape `(rows, columns)`, bf16 or fp16.
        modules (`Sequence[int]`):
            For each weight its index in `left`, `right`, `alphas` and `seeds`.
        left (`torch.Tensor` of shape `(modules, rows, k)`):
            Left factors of these rows, fp32.
        right (`torch.Tensor` of shape `(modules, columns, k)`):
            Right factors of these columns, fp32.
        alphas (`Sequence[float]`):
            Signed step sizes.
        seeds (`Sequence[int]`):
            Seeds of the rounding, 64 bits each.
        row (`int`):
            Row of the whole weights at which the part begins.
        column (`int`):
            Column of the whole weights at which the part begins.
        width (`int`):
            Number of columns of the whole weights.
    """
    (rows, columns), rank, device = values[0].shape, left.shape[2], values[0].device
    left, right = left.contiguous(), right.contiguous()
    table = np.empty((len(values), 4), dtype=np.int64)
    table[:, 0] = [part.data_ptr() for part in values]
    table[:, 1] = modules
    table[:, 2] = [seeds[module] for module in modules]
    table[:, 3] = np.array([alphas[module] for module in modules], dtype=np.float32).view(np.int32)
    alignment = _ALIGNMENT if not (table[:, 0] % _ALIGNMENT).any() else values[0].element_size()
    with torch.cuda.device_of(values[0]):
        _add_low_rank_kernel[triton.cdiv(rows, _TILE), triton.cdiv(columns, _TILE), len(values)](
            torch.from_numpy(table).to(device),
            left,
            right,
            rows,
            columns,
            *values[0].stride(),
            left.stride(0),
            right.stride(0),
            row,
            column,
            width,
            RANK=rank,
            RANKS=_RANKS,
            TILE=_TILE,
            HALF=values[0].dtype == torch.float16,
            ALIGNMENT=alignment,
            PRECISION=_PRECISION,
        )
