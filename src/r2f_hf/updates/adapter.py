"""Adding a factored update to a LoRA pair of bounded rank, instead of to the weight next to it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..gradients import LowRankGradient


@torch.no_grad()
def add_to_pair_(A: Tensor, B: Tensor, gradient: LowRankGradient, alpha: float) -> Tensor:
    r"""
    In-place `B A <- best approximation of rank r to B A + alpha U Vᵀ`.

    The sum has the factors `[B, alpha U]` and `[Aᵀ, V]`. With their QR decompositions `Q₁ R₁` and `Q₂ R₂`, its
    singular values are those of the small matrix `R₁ R₂ᵀ`, and the sum itself is never formed. The largest `r`
    singular values are kept. Each factor takes their square roots, so that both stay within the range of half
    precision.

    Args:
        A (`torch.Tensor` of shape `(r, in_features)`):
            Right factor of the pair, changed in place.
        B (`torch.Tensor` of shape `(out_features, r)`):
            Left factor of the pair, changed in place.
        gradient ([`LowRankGradient`]):
            The factored update.
        alpha (`float`):
            Signed step size.

    Returns:
        `torch.Tensor` of shape `()`, fp32: Squared Frobenius norm of what was discarded. It is at most
        that of the update.
    """
    rank = A.shape[0]
    left, left_core = torch.linalg.qr(torch.cat([B.float(), alpha * gradient.U], dim=1))
    right, right_core = torch.linalg.qr(torch.cat([A.float().T, gradient.V], dim=1))
    U, S, Vh = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
    root = S[:rank].sqrt()
    kept = root.numel()
    # A module may be smaller than the rank.
    A.zero_()
    B.zero_()
    A[:kept].copy_((right @ (Vh[:rank].T * root)).T)
    B[:, :kept].copy_(left @ (U[:, :rank] * root))
    return S[rank:].square().sum()
