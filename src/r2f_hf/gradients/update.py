"""Writing a factored update into a weight, with stochastic rounding where the weight has few bits."""

from __future__ import annotations

import torch
from torch import Tensor

from .low_rank import LowRankGradient


# Significant bits (the implicit one included) and the exponent of the smallest subnormal.
_FORMATS = {torch.bfloat16: (8, -133), torch.float16: (11, -24)}

# Half-precision weights are updated in row blocks of at most this many elements, so that the fp32 working copy stays
# small beside the weight.
_BLOCK_ELEMENTS = 2**18


def stochastic_round(x: Tensor, dtype: torch.dtype, generator: torch.Generator | None = None) -> Tensor:
    """
    Round fp32 values to bf16 or fp16 so that the rounded value equals the input in expectation.

    An unlearning step is smaller than half a unit in the last place of most bf16 weights: rounding to nearest would
    lose it entirely. Rounding up with a probability equal to the discarded fraction keeps it on average, without
    state.

    Args:
        x (`torch.Tensor`):
            Values in fp32.
        dtype (`torch.dtype`):
            `torch.bfloat16` or `torch.float16`.
        generator (`torch.Generator`, *optional*):
            Source of the random bits, on the device of `x`.

    Returns:
        `torch.Tensor`: Values in `dtype`.
    """
    bits, smallest = _FORMATS[dtype]
    _, exponent = torch.frexp(x)
    exponent = (exponent - bits).clamp_min(smallest)
    noise = torch.rand(x.shape, generator=generator, device=x.device)
    # Multiplying by the inverse of a unit this small would overflow; dividing by it is exact.
    unit = torch.ldexp(torch.ones_like(x), exponent)
    scaled = x / unit
    below = torch.floor(scaled)
    # Comparing with the discarded fraction, which is exact, and not adding to it, which would round.
    return ((below + (noise < scaled - below)) * unit).to(dtype)


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

    fp32 (and fp64) weights take one fused `addmm_`; bf16 and fp16 weights are updated in row blocks in fp32 and
    rounded stochastically.

    Args:
        weight (`torch.Tensor` of shape `(out_features, in_features)`):
            The weight, changed in place.
        gradient ([`LowRankGradient`]):
            The factored gradient.
        alpha (`float`):
            Signed step.
        transposed (`bool`, *optional*, defaults to `False`):
            Whether the weight is stored as `(in_features, out_features)`, as in GPT-2's `Conv1D`.
        generator (`torch.Generator`, *optional*):
            Source of the random bits for stochastic rounding.
    """
    left, right = (gradient.V, gradient.U) if transposed else (gradient.U, gradient.V)
    if weight.dtype not in _FORMATS:
        weight.addmm_(left.to(weight.dtype), right.T.to(weight.dtype), alpha=alpha)
        return
    rows = max(1, _BLOCK_ELEMENTS // weight.shape[1])
    for start in range(0, weight.shape[0], rows):
        block = weight[start : start + rows]
        updated = torch.addmm(block.float(), left[start : start + rows], right.T, alpha=alpha)
        block.copy_(stochastic_round(updated, weight.dtype, generator))
