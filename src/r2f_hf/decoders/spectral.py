"""The learned decoder: a filter over the core's spectrum that does not depend on the model's width."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..gradients import on_all
from .base import FilterDecoder
from .core import SketchCore


FEATURES = 10
# The features are logarithms of ratios, clamped to this size. Larger ones come from zeros or from rounding.
_LARGEST_LOG = 12.0


class SpectralDecoder(FilterDecoder):
    r"""
    A learned, dimension-free filter: the gradient decoder of Recover-to-Forget, trained on a proxy, used on any model.

    A small 1-D convolution reads the spectrum of the core. For each singular direction it says how much of it is
    signal: `φ(σ) = g(spectrum) / σ` with `0 < g < 1`. It sees only ratios, so nothing in it depends on a module's
    width, on the scale of the loss or on the rank. A filter that was trained on one model is used unchanged on another
    model, of any architecture.

    A subclass with another gate implements [`~SpectralDecoder.gate_of`].

    Args:
        channels (`int`, *optional*, defaults to `16`):
            Width of the hidden layers.
    """

    def __init__(self, channels: int = 16):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(FEATURES, channels, kernel_size=3, padding=1),
            nn.GELU(),
            nn.Conv1d(channels, channels, kernel_size=3, padding=1),
            nn.GELU(),
            nn.Conv1d(channels, 1, kernel_size=1),
        )

    def gate(self, core: SketchCore) -> Tensor:
        return self.gates([core])[0]

    def gates(self, cores: Sequence[SketchCore]) -> list[Tensor]:
        inputs = [(features,) for features in spectral_features(cores)]
        return [gate for (gate,) in on_all(lambda features: (self.gate_of(features),), inputs)]

    def gate_of(self, features: Tensor) -> Tensor:
        """
        The gate for the features of a core.

        Args:
            features (`torch.Tensor` of shape `(..., k, features)`):
                Features from [`spectral_features`], fp32.

        Returns:
            `torch.Tensor` of shape `(..., k)`: The gate, from 0 to 1.
        """
        batch = features.reshape(-1, *features.shape[-2:]).mT
        # The net moves to the device of the features: on a GPU, waiting for the CPU would take the longest.
        self.to(features.device)
        return self.net(batch).sigmoid().reshape(features.shape[:-1])


def spectral_features(cores: Sequence[SketchCore]) -> list[Tensor]:
    """
    What the learned filter sees: only ratios.

    For each singular value there is its logarithm relative to the largest, its place in the spectrum, and its distance
    to the next one. There are also the lengths of the two vectors that it would join, `G21 q / σ` and `G12ᵀ p / σ`:
    noise joins long vectors through a small `σ`.

    For the whole core there are the logarithms of `k / out_features`, of `k / in_features`, and of the effective rank
    over `k`. There are also the logarithms of the parts of both sketches that lie inside the core. By these, a filter
    tells blind probes from warm ones.

    Args:
        cores (`Sequence[SketchCore]`):
            Cores, each of one or several modules.

    Returns:
        `list[torch.Tensor]`: One tensor per core, of shape `(..., k, features)`, fp32, finite.
    """
    summaries = [
        (
            core.right_gram,
            core.left_gram,
            core.Q,
            core.P,
            core.sigma,
            *(core.sigma.new_full((*core.sigma.shape[:-1], 1), side.shape[-2]) for side in (core.right, core.left)),
        )
        for core in cores
    ]
    return [features for (features,) in on_all(features_of, summaries)]


def features_of(
    right_gram: Tensor, left_gram: Tensor, Q: Tensor, P: Tensor, sigma: Tensor, rows: Tensor, columns: Tensor
) -> tuple[Tensor]:
    """
    [`spectral_features`] from the small matrices of a core.

    Args:
        right_gram (`torch.Tensor` of shape `(..., a, a)`):
            Gram matrix of `right`, fp64.
        left_gram (`torch.Tensor` of shape `(..., b, b)`):
            Gram matrix of `left`, fp64.
        Q (`torch.Tensor` of shape `(..., a, k)`):
            Right singular vectors.
        P (`torch.Tensor` of shape `(..., b, k)`):
            Left singular vectors.
        sigma (`torch.Tensor` of shape `(..., k)`):
            Singular values.
        rows (`torch.Tensor` of shape `(..., 1)`):
            `out_features`.
        columns (`torch.Tensor` of shape `(..., 1)`):
            `in_features`.
    """
    sigma, k = sigma.double(), sigma.shape[-1]
    tiny = torch.finfo(torch.float32).tiny
    length_y, right = lengths(right_gram, Q, sigma)
    length_z, left = lengths(left_gram, P, sigma)
    # In units of the largest singular value.
    unit = 1 / sigma[..., :1].clamp_min(tiny)
    per_value = torch.stack([sigma, length_y, length_z], dim=-1) * unit.unsqueeze(-1)
    energy = per_value[..., 0].square().sum(-1, keepdim=True)
    per_core = torch.cat([energy, energy.sqrt(), right * unit, left * unit, rows / k, columns / k], dim=-1)
    per_value, per_core = (values.clamp_min(tiny).log() for values in (per_value, per_core))
    log_sigma, log_y, log_z = per_value.unbind(-1)
    log_energy, log_root, log_right, log_left, log_rows, log_columns = per_core.unsqueeze(-2).unbind(-1)
    next_log_sigma = torch.cat([log_sigma[..., 1:], log_sigma[..., -1:]], dim=-1)
    place = torch.arange(k, device=sigma.device, dtype=sigma.dtype) / k
    features = (
        log_sigma,
        place,
        next_log_sigma - log_sigma,
        log_y - log_sigma,
        log_z - log_sigma,
        -log_rows,
        -log_columns,
        log_energy - math.log(k),
        log_root - log_right,
        log_root - log_left,
    )
    stacked = torch.stack([feature.expand_as(sigma) for feature in features], dim=-1)
    return (stacked.clamp(-_LARGEST_LOG, _LARGEST_LOG).float(),)


def lengths(gram: Tensor, rotation: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """
    The lengths of a core's terms, without computing the terms.

    A rotated column of a side is a term plus a vector of length `σ`, and these two are orthogonal.

    Args:
        gram (`torch.Tensor` of shape `(..., a, a)`):
            Gram matrix of one side of the core, `right` or `left`, fp64.
        rotation (`torch.Tensor` of shape `(..., a, k)`):
            Its singular vectors, `Q` or `P`.
        sigma (`torch.Tensor` of shape `(..., k)`):
            The singular values, fp64.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: The lengths, of shape `(..., k)`, and the Frobenius norm of the side, of
        shape `(..., 1)`; fp64.
    """
    rotation = rotation.double()
    squares = (rotation * (gram @ rotation)).sum(-2) - sigma.square()
    norm = gram.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True).sqrt()
    return squares.clamp_min(0).sqrt(), norm
