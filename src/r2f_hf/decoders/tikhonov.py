"""The closed-form decoder: generalized Nyström with a Tikhonov-filtered core."""

from __future__ import annotations

from torch import Tensor

from .base import FilterDecoder
from .core import SketchCore


class TikhonovDecoder(FilterDecoder):
    r"""
    Generalized Nyström reconstruction with a regularised core inverse: the least that a learned decoder has to reach.

    The plain inverse `φ(σ) = 1/σ` (Tropp et al. 2017, Nakatsukasa 2020) amplifies the noise in small singular values.
    The filter here,

        φ(σ) = σ / (σ² + (τ σ₁)²),

    is close to `1/σ` on the dominant part of the spectrum, and goes to zero below `τ σ₁`.

    Args:
        tau (`float`, *optional*, defaults to `0.1`):
            Threshold `τ`, as a fraction of the largest singular value `σ₁`. As it goes to zero, a gradient of rank at
            most `r` is recovered exactly.
    """

    def __init__(self, tau: float = 0.1):
        super().__init__()
        if not tau > 0:
            raise ValueError(f"tau must be positive, got {tau}.")
        self.tau = tau

    def gate(self, core: SketchCore) -> Tensor:
        """`σ φ(σ) = σ² / (σ² + (τ σ₁)²)`, of shape `(..., k)`."""
        normalised = core.sigma * core.inverse_sigma[..., :1]
        return normalised.square() / (normalised.square() + self.tau**2)
