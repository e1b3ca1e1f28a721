"""The learned decoder: a filter over the core's spectrum that does not know the model's width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import FilterDecoder
from .core import SketchCore


FEATURES = 10
# Logarithms of ratios; what lies beyond is zero or rounding.
_LARGEST_LOG = 12.0


class SpectralDecoder(FilterDecoder):
    r"""
    A learned, dimension-free filter: the gradient decoder of Recover-to-Forget, trained on a proxy, used on any model.

    A small 1-D convolution reads the spectrum of the core and says for each singular direction how much of it is
    signal, `φ(σ) = g(spectrum) / σ` with `0 < g < 1`. All that it sees are ratios, so that nothing in it depends on a
    module's width, on the scale of the loss or on the rank: what was trained on one model is used unchanged on another
    one, of any architecture.

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
        return self.gate_of(spectral_features(core))

    def gate_of(self, features: Tensor) -> Tensor:
        """
        The gate for features of [`spectral_features`].

        Args:
            features (`torch.Tensor` of shape `(..., k, features)`):
                fp32.

        Returns:
            `torch.Tensor` of shape `(..., k)`.
        """
        batch = features.reshape(-1, *features.shape[-2:]).mT
        # It follows the modules: on a GPU the wait for the CPU would be longer than all else.
        self.to(features.device)
        return self.net(batch).sigmoid().reshape(features.shape[:-1])


def spectral_features(core: SketchCore) -> Tensor:
    """
    What the learned filter sees: ratios alone.

    For each singular value: its logarithm relative to the largest, its place in the spectrum, its distance to the next
    one, and how long the two vectors are that it would join (`G21 q / σ` and `G12ᵀ p / σ`): noise joins long vectors
    through a small `σ`. For the whole core: the logarithms of `k / out_features`, `k / in_features`, of the effective
    rank over `k`, and of the parts of both sketches that lie inside the core, by which a filter tells probes that
    were drawn blindly from probes that follow the gradient.

    Args:
        core ([`SketchCore`]):
            The core of one or several modules.

    Returns:
        `torch.Tensor` of shape `(..., k, features)`, fp32, finite.
    """
    # In fp64 no square of an fp32 number over- or underflows.
    sigma, k = core.sigma.double(), core.sigma.shape[-1]
    tiny = torch.finfo(torch.float32).tiny
    length_y, right = lengths(core.right, core.Q, sigma)
    length_z, left = lengths(core.left, core.P, sigma)
    # In units of the largest singular value.
    unit = 1 / sigma[..., :1].clamp_min(tiny)
    sigma, length_y, length_z, right, left = (x * unit for x in (sigma, length_y, length_z, right, left))
    energy = sigma.square().sum(-1, keepdim=True)
    following = torch.cat([sigma[..., 1:], sigma[..., -1:]], dim=-1)
    place = torch.arange(k, device=sigma.device, dtype=sigma.dtype) / k

    def log(numerator: Tensor, denominator: Tensor) -> Tensor:
        ratio = numerator.clamp_min(tiny).log() - denominator.clamp_min(tiny).log()
        return ratio.clamp(-_LARGEST_LOG, _LARGEST_LOG).expand_as(sigma)

    ones = torch.ones_like(energy)
    features = (
        log(sigma, ones),
        place.expand_as(sigma),
        log(following, sigma),
        log(length_y, sigma),
        log(length_z, sigma),
        log(k * ones, core.right.shape[-2] * ones),
        log(k * ones, core.left.shape[-2] * ones),
        log(energy, k * ones),
        log(energy.sqrt(), right),
        log(energy.sqrt(), left),
    )
    return torch.stack(features, dim=-1).float()


def lengths(columns: Tensor, rotation: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """
    How long the terms of a core are, without computing them: a rotated column is a term and, at a right angle, `σ`.

    Args:
        columns (`torch.Tensor` of shape `(..., n, a)`):
            One side of the core, `right` or `left`.
        rotation (`torch.Tensor` of shape `(..., a, k)`):
            Its singular vectors, `Q` or `P`.
        sigma (`torch.Tensor` of shape `(..., k)`):
            The singular values, fp64.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: The lengths, of shape `(..., k)`, and the Frobenius norm of the side, of
        shape `(..., 1)`; fp64.
    """
    columns, rotation = columns.double(), rotation.double()
    gram = columns.mT @ columns
    squares = (rotation * (gram @ rotation)).sum(-2) - sigma.square()
    norm = gram.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True).sqrt()
    return squares.clamp_min(0).sqrt(), norm
