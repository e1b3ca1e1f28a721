"""Running mean squares of a gradient's rows and columns, by which an update is rescaled."""

from __future__ import annotations

import torch
from torch import Tensor

from ..gradients import LowRankGradient


# Weight of the past, per step.
DECAY = 0.9

# A row or column whose mean square is below this fraction of the module's mean is scaled up no further.
SMALLEST = 1e-3


class SecondMoments:
    r"""
    Mean squares of the rows and columns of one module's gradients, and the rescaling by them.

    Adafactor (Shazeer & Stern 2018, arXiv 1804.04235, algorithm 4) keeps running means `R` and `C` of the squares of
    each row and of each column, instead of those of every entry. It divides by the root of `R Cᵀ / mean(R)`. For a
    factored gradient, both are known without the dense matrix: `diag(U (VᵀV) Uᵀ) / in_features` and
    `diag(V (UᵀU) Vᵀ) / out_features`. The rescaled gradient stays in factors too:

        Ĝ_ij / √(R_i / mean(R) · C_j / mean(C)) = (D_R U) (D_C V)ᵀ

    The scale of the module as a whole does not change. This matters where steps are not normalised. Both tensors may
    carry the same leading dimensions, for modules of one shape.

    Args:
        rows (`torch.Tensor` of shape `(..., out_features)`):
            `R`, fp32.
        columns (`torch.Tensor` of shape `(..., in_features)`):
            `C`, fp32.
    """

    def __init__(self, rows: Tensor, columns: Tensor):
        self.rows, self.columns = rows, columns

    @classmethod
    def after(cls, gradient: LowRankGradient, previous: SecondMoments | None) -> SecondMoments:
        """The moments after a step, from its gradient and the moments before it."""
        U, V = gradient.U, gradient.V
        of_U, of_V = gradient.grams
        # Rounding can bring the mean square of a row of zeros a little below zero.
        rows = (U @ of_V).mul_(U).sum(-1).clamp_min(0) / V.shape[-2]
        columns = (V @ of_U).mul_(V).sum(-1).clamp_min(0) / U.shape[-2]
        if previous is None:
            return cls(rows, columns)
        return cls(torch.lerp(rows, previous.rows, DECAY), torch.lerp(columns, previous.columns, DECAY))

    def scale(self, gradient: LowRankGradient) -> LowRankGradient:
        """The gradient with its rows and columns rescaled."""
        return LowRankGradient(
            U=gradient.U * inverse_root(self.rows).unsqueeze(-1),
            V=gradient.V * inverse_root(self.columns).unsqueeze(-1),
        )


def inverse_root(moments: Tensor) -> Tensor:
    """`√(mean / moments)`, and 1 where all moments are zero."""
    mean = moments.mean(-1, keepdim=True)
    relative = torch.where(mean > 0, moments / mean.clamp_min(torch.finfo(moments.dtype).tiny), 1.0)
    return relative.clamp_min(SMALLEST).rsqrt()
