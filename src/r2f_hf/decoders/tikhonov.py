"""The closed-form decoder: generalized Nyström with a Tikhonov-filtered core."""

from __future__ import annotations

import torch

from ..gradients import LoraSketch, LowRankGradient
from .base import GradientDecoder


class TikhonovDecoder(GradientDecoder):
    r"""
    Generalized Nyström reconstruction with a regularised core inverse.

    With the core `C = Bᵀ G Aᵀ = P Σ Qᵀ`, the reconstruction is `Ĝ = Y Q φ(Σ) Pᵀ Z`. The plain inverse `φ(σ) = 1/σ`
    (Tropp et al. 2017, Nakatsukasa 2020) amplifies the noise in small singular values; here

        φ(σ) = σ / (σ² + (τ σ₁)²)

    follows `1/σ` on the dominant part of the spectrum and goes to zero below `τ σ₁`.

    Args:
        tau (`float`, *optional*, defaults to `0.1`):
            Threshold as a fraction of the largest singular value. A gradient of rank at most `r` is recovered exactly
            as `tau` goes to zero.
    """

    def __init__(self, tau: float = 0.1):
        super().__init__()
        if not tau > 0:
            raise ValueError(f"tau must be positive, got {tau}.")
        self.tau = tau

    def decode(self, sketch: LoraSketch) -> LowRankGradient:
        P, sigma, Qh = torch.linalg.svd(sketch.core, full_matrices=False)
        # A zero gradient has a zero core: the smallest normal number keeps 0/0 from becoming NaN.
        tiny = torch.finfo(sigma.dtype).tiny
        normalised = sigma / sigma[0].clamp_min(tiny)
        phi = normalised / (normalised.square() + self.tau**2) / sigma[0].clamp_min(tiny)
        return LowRankGradient(U=sketch.right @ (Qh.T * phi), V=sketch.Z.T @ P)
