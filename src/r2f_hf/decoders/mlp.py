"""The decoder as the paper is usually read: flattened LoRA gradients in, a flattened full gradient out."""

from __future__ import annotations

import torch
from torch import nn

from ..gradients import LoraSketch, LowRankGradient
from .base import GradientDecoder


MAX_PARAMETERS = 100_000_000


class MlpDecoder(GradientDecoder):
    """
    A perceptron from the LoRA gradients of one module shape to its full gradient: the baseline of the comparison.

    It learns the map for the probes that it was trained with, but does not see them. So it can only be used with the
    same `A` and `B`. Its output is dense and as large as the module, so it is not cheap, and it serves no other shape.

    Args:
        out_features (`int`):
            Rows of the module's weight.
        in_features (`int`):
            Columns of the module's weight.
        rank (`int`):
            Rank of the probes, held-out rows included.
        hidden (`int`, *optional*, defaults to `64`):
            Width of the hidden layer.

    Raises:
        `ValueError`: If it would have more than 100 million parameters.
    """

    needs_fixed_probes = True

    def __init__(self, out_features: int, in_features: int, rank: int, hidden: int = 64):
        super().__init__()
        self.out_features, self.in_features, self.rank = out_features, in_features, rank
        inputs, outputs = rank * (out_features + in_features), out_features * in_features
        parameters = hidden * (inputs + outputs) + hidden + outputs
        if parameters > MAX_PARAMETERS:
            raise ValueError(
                f"An mlp decoder for a {out_features} x {in_features} module at rank {rank} would have "
                f"{parameters:,} parameters; the limit is {MAX_PARAMETERS:,}. Use the spectral decoder, whose size "
                "does not depend on the module's."
            )
        self.net = nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))

    def decode(self, sketch: LoraSketch) -> LowRankGradient:
        if (*sketch.Y.shape[-2:], sketch.Z.shape[-1]) != (self.out_features, self.rank, self.in_features):
            raise ValueError(
                f"This mlp decoder is for {self.out_features} x {self.in_features} modules at rank {self.rank}, the "
                f"sketch is of a {sketch.Y.shape[-2]} x {sketch.Z.shape[-1]} module at rank {sketch.Y.shape[-1]}. "
                "An mlp serves only one shape. The spectral decoder serves all."
            )
        Y = sketch.Y.clone()
        Y[..., sketch.decodable :] = 0
        flat = torch.cat([Y.flatten(-2), sketch.Z.flatten(-2)], dim=-1)
        # The map is linear in the scale of the gradient, so the net does not have to learn the scale.
        scale = torch.linalg.vector_norm(flat, dim=-1, keepdim=True)
        dense = self.net(flat / scale.clamp_min(torch.finfo(flat.dtype).tiny)) * scale
        U = dense.unflatten(-1, (self.out_features, self.in_features))
        identity = torch.eye(self.in_features, dtype=U.dtype, device=U.device)
        return LowRankGradient(U=U, V=identity.expand(*U.shape[:-2], -1, -1))
