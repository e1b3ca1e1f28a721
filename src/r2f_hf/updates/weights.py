"""Writing a factored update into a weight, with stochastic rounding where the weight has few bits."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from ..distributed import is_partitioned, own_blocks
from ..gradients import LowRankGradient


logger = logging.getLogger(__name__)

# Half-precision weights are updated in blocks of rows with at most this many elements. On a CPU, the fp32 working copy
# is then small compared with the weight. On an accelerator every block takes a dozen launches, so blocks are larger,
# and the copy is small compared with the activations of a step.
_BLOCK_ELEMENTS, _BLOCK_ELEMENTS_ON_ACCELERATOR = 2**18, 2**24

# Significant bits of fp16 (the implicit one included) and the exponent of its smallest subnormal.
_FP16_BITS, _FP16_SMALLEST = 11, -24

# How many places there are in a CPU's drawn numbers at which a row of rounding noise can begin.
_NOISE_PLACES = 2**14

# Bytes of a cache line, and of the widest vector that a CPU adds at once.
_ALIGNMENT = 64


@torch.no_grad()
def align_(weights: Iterable[Tensor]) -> None:
    """
    Move weights in memory, to addresses at which a CPU writes quickly.

    Loaded weights begin where the reader left them, in the middle of a cache line, and adding to them takes twice as
    long. They are moved one by one, so that no more extra memory is needed than for one of them. All weights of a
    model have to be moved: the file that they were read from stays mapped as long as one of them is still in it.

    Args:
        weights (`Iterable[torch.Tensor]`):
            All weights of a model. Weights that are shared, sharded or partitioned, or on an accelerator, stay where
            they are.
    """
    for weight in weights:
        elsewhere = weight.device.type != "cpu" or isinstance(weight, DTensor) or is_partitioned(weight)
        if not elsewhere and not weight.is_shared() and weight.data_ptr() % _ALIGNMENT:
            weight.data = weight.data.clone()


def stochastic_round(x: Tensor, dtype: torch.dtype, noise: Tensor) -> Tensor:
    """
    Round fp32 values to bf16 or fp16 so that the rounded value equals the input in expectation.

    An unlearning step is smaller than half a unit in the last place of most bf16 weights, so rounding to nearest would
    lose it entirely. Rounding up with a probability equal to the discarded fraction keeps the step on average, and
    needs no state.

    Args:
        x (`torch.Tensor`):
            Values in fp32.
        dtype (`torch.dtype`):
            `torch.bfloat16` or `torch.float16`.
        noise (`torch.Tensor`):
            Random numbers, uniform in [0, 2¹⁶), int32, of the shape of `x`.

    Returns:
        `torch.Tensor`: Values in `dtype`.
    """
    if dtype == torch.bfloat16:
        # The upper half of an fp32 number is a bf16 number. A random number that is added to the lower half carries
        # into the upper one with a probability equal to the fraction of a unit in the lower half.
        bits = x.view(torch.int32) + noise
        return bits.bitwise_right_shift_(16).to(torch.int16).view(dtype)
    _, exponent = torch.frexp(x)
    # Multiplying by the inverse of a unit this small would overflow. Dividing by the unit is exact.
    unit = torch.ldexp(torch.ones_like(x), (exponent - _FP16_BITS).clamp_min(_FP16_SMALLEST))
    scaled = x / unit
    below = torch.floor(scaled)
    # Comparing with the discarded fraction is exact. Adding to it would round.
    return ((below + (noise < (scaled - below) * 2**16)) * unit).to(dtype)


def draw_noise(size: tuple[int, int], device: torch.device, generator: torch.Generator | None) -> Tensor:
    """
    Random numbers for [`stochastic_round`]: uniform in [0, 2¹⁶), int32, any two entries independent of each other.

    A CPU draws one number after the other, which would take longer than everything else. So there the rows are pieces
    of one long row of random numbers. Each piece begins at another place, and is combined (xor) with a random number
    of its own. With that, no pair of entries is more alike than if all had been drawn. The rounded values have the
    same mean and variance in every direction.
    """
    if device.type != "cpu":
        return torch.randint(2**16, size, generator=generator, dtype=torch.int32, device=device)
    rows, columns = size
    # Four numbers share 64 bits.
    count = columns + _NOISE_PLACES
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    drawn = bits.view(torch.uint16)[:count].to(torch.int32)
    # As long as there are enough places, no two rows begin at the same one.
    spacing = max(1, _NOISE_PLACES // rows)
    places = (torch.arange(rows) * spacing + torch.randint(spacing, (rows,), generator=generator)) % _NOISE_PLACES
    row_numbers = torch.randint(2**16, (rows, 1), generator=generator, dtype=torch.int32)
    return drawn.unfold(0, columns, 1).index_select(0, places).bitwise_xor_(row_numbers)


@cache
def fused_update(device: torch.device, dtype: torch.dtype) -> Callable[..., None] | None:
    """[`~r2f_hf.updates.triton_kernel.add_rounded_`] for half precision, if Triton is installed and works."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or find_spec("triton") is None:
        return None
    from .triton_kernel import add_rounded_

    one = torch.ones(1, 1, device=device)
    try:
        add_rounded_([one.to(dtype)], [0], one[None], one[None], [1.0], [0], 0, 0, 1)
    except Exception as error:
        # A missing compiler, or a GPU that Triton does not know, can raise any kind of error.
        logger.warning("Triton cannot compile for %s, so weights are rounded in several passes: %s", device, error)
        return None
    return add_rounded_


@torch.no_grad()
def add_low_rank_(
    weight: Tensor,
    gradient: LowRankGradient,
    alpha: float,
    transposed: bool = False,
    generator: torch.Generator | None = None,
) -> None:
    """
    In-place `weight += alpha * U @ V.T`.

    fp32 (and fp64) weights take one fused `addmm_`. bf16 and fp16 weights are updated in fp32, block of rows by block
    of rows, and rounded stochastically. For a sharded weight, each process writes the part that it holds, with
    the numbers that this part would get in a single process.

    Args:
        weight (`torch.Tensor` of shape `(out_features, in_features)`):
            The weight, changed in place.
        gradient ([`LowRankGradient`]):
            The factored gradient.
        alpha (`float`):
            Signed step size.
        transposed (`bool`, *optional*, defaults to `False`):
            Whether the weight is stored as `(in_features, out_features)`, as in GPT-2's `Conv1D`.
        generator (`torch.Generator`, *optional*):
            Source of the random numbers for stochastic rounding.
    """
    left, right = (gradient.V, gradient.U) if transposed else (gradient.U, gradient.V)
    blocks = own_blocks(weight)
    if weight.dtype not in (torch.bfloat16, torch.float16):
        for values, row, column in blocks:
            rows, columns = left[row : row + len(values)], right[column : column + values.shape[1]]
            values.addmm_(rows.to(weight.dtype), columns.T.to(weight.dtype), alpha=alpha)
        return
    elements = _BLOCK_ELEMENTS if weight.device.type == "cpu" else _BLOCK_ELEMENTS_ON_ACCELERATOR
    height = max(1, elements // len(right))
    for start in range(0, len(left), height):
        stop = min(start + height, len(left))
        # The noise is drawn for all rows, whichever process holds them.
        size = (stop - start, len(right))
        noise = draw_noise(size, weight.device, generator)
        for values, row, column in blocks:
            first, last = max(start, row), min(stop, row + len(values))
            if first < last:
                block = values[first - row : last - row]
                columns = slice(column, column + values.shape[1])
                updated = block.float().addmm_(left[first:last], right[columns].T, alpha=alpha)
                block.copy_(stochastic_round(updated, weight.dtype, noise[first - start : last - start, columns]))


@torch.no_grad()
def add_low_rank_all_(
    weights: Sequence[Tensor],
    gradients: LowRankGradient,
    alphas: Sequence[float],
    seeds: Sequence[int],
    transposed: bool = False,
) -> None:
    """
    [`add_low_rank_`] for several weights.

    On a GPU with Triton, half-precision weights take one launch and one pass over each weight. Their random numbers
    are then others.

    Args:
        weights (`Sequence[torch.Tensor]`):
            Weights of one shape, precision and device, changed in place.
        gradients ([`LowRankGradient`]):
            The factored gradients, whose first dimension is the weights.
        alphas (`Sequence[float]`):
            Signed step sizes. A weight whose step size is 0 is left alone.
        seeds (`Sequence[int]`):
            Seeds of the stochastic rounding, 64 bits each.
        transposed (`bool`, *optional*, defaults to `False`):
            Whether the weights are stored as `(in_features, out_features)`, as in GPT-2's `Conv1D`.
    """
    written = [index for index, alpha in enumerate(alphas) if alpha]
    device = gradients.U.device
    add_rounded_ = fused_update(device, weights[0].dtype)
    if add_rounded_ is None:
        separate = gradients.unbind()
        for index in written:
            generator = torch.Generator(device).manual_seed(seeds[index])
            add_low_rank_(weights[index], separate[index], alphas[index], transposed, generator)
        return
    left, right = (gradients.V, gradients.U) if transposed else (gradients.U, gradients.V)
    parts: dict[Any, list[tuple[int, Tensor]]] = {}
    # Modules that share a weight take turns, in separate launches: a launch keeps no order.
    turns: Counter[int] = Counter()
    for index in written:
        for values, row, column in own_blocks(weights[index]):
            key = (turns[values.data_ptr()], row, column, values.shape, values.stride())
            turns[values.data_ptr()] += 1
            parts.setdefault(key, []).append((index, values))
    for (_, row, column, (height, width), _), held in parts.items():
        indices, values = zip(*held, strict=True)
        factors = left[:, row : row + height], right[:, column : column + width]
        add_rounded_(values, indices, *factors, alphas, seeds, row, column, right.shape[1])
