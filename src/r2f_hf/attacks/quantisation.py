"""Quantisation: rounding the weights may undo small updates."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

from ..distributed import whole_
from .base import UNATTACKED, Attack, Target, Values, linear_weights, needs_changeable_weights, restored


# Weights that share a scale when they are rounded without bitsandbytes.
GROUP = 64


def rounded(weight: Tensor, bits: int) -> Tensor:
    """
    A weight rounded to whole multiples of a scale, symmetric around 0, one scale per [`GROUP`] numbers of a row.

    Args:
        weight (`torch.Tensor` of shape `(rows, columns)`):
            The weight.
        bits (`int`):
            Bits per number: the multiples go from `-(2**(bits - 1) - 1)` to `2**(bits - 1) - 1`.

    Returns:
        `torch.Tensor`: Of the same shape and dtype.
    """
    most = 2 ** (bits - 1) - 1
    pieces = []
    for piece in weight.float().split(GROUP, dim=1):
        scale = piece.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / most
        pieces.append((piece / scale).round().clamp(-most, most) * scale)
    return torch.cat(pieces, dim=1).to(weight.dtype)


def as_nf4(weight: Tensor) -> Tensor:
    """A weight after bitsandbytes' 4-bit NormalFloat and back."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(weight.float().contiguous(), quant_type="nf4")
    return dequantize_4bit(packed, state).to(weight.dtype)


def as_int8(weight: Tensor) -> Tensor:
    """A weight after bitsandbytes' 8-bit numbers (LLM.int8, one scale per row) and back."""
    scale = weight.float().abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / 127
    return ((weight.float() / scale).round() * scale).to(weight.dtype)


def ways() -> dict[str, Callable[[Tensor], Tensor]]:
    """The ways to round, by name. NF4 needs bitsandbytes."""
    found: dict[str, Callable[[Tensor], Tensor]] = {"int8": as_int8}
    if find_spec("bitsandbytes") is not None:
        found["NF4"] = as_nf4
    return found | {"4 bits": lambda weight: rounded(weight, 4), "3 bits": lambda weight: rounded(weight, 3)}


def quantise(target: Target) -> Values:
    """Probability of the forget rows under rounded weights of all linear layers but the head."""
    values = {UNATTACKED: target.probabilities()}
    for name, function in ways().items():
        with restored(target.model):
            for weight in linear_weights(target.model).values():
                with whole_(weight) as whole:
                    whole.copy_(function(whole))
            values[name] = target.probabilities()
    return values


QUANTISATION = Attack(
    meaning="Rounding the weights to fewer bits, as people do to save memory, brings back this much.",
    quantity="probability",
    run=quantise,
    does_not_fit=needs_changeable_weights,
)
