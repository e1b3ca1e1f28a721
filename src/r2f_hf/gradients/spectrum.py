"""The spectrum of a decoded gradient: how much of a step its leading directions take."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .linalg import double_gram, eigh, on_all, svd
from .low_rank import LowRankGradient


# Singular values below this part of the largest one are rounding, and are left out.
LEAST = 1e-4


def damp_spectra(gradients: Sequence[LowRankGradient], damping: float) -> list[LowRankGradient]:
    r"""
    Damp the leading directions of gradients: `U S Vᵀ` becomes `U S^(1-2k) Vᵀ` (arXiv 2605.11685).

    Where the rows of a forget set share directions, these lead, and relearning a few rows restores them in all rows.
    With `k = 0.5` all directions weigh the same, as in an orthogonalised step. `docs/theory.md` derives what this
    changes, in section 7.

    Args:
        gradients (`Sequence[LowRankGradient]`):
            The gradients. Leading dimensions count the modules.
        damping (`float`):
            `k`, from 0 (nothing changes) to 1.

    Returns:
        `list[LowRankGradient]`: Gradients of the same norms. A direction with less than 1e-4 of the largest singular
        value is left out.
    """
    # A gradient that is not finite is found out later, by its norm. A decomposition would raise an error.
    grams = on_all(
        _factors,
        [[double_gram(side).nan_to_num(0, 0, 0) for side in (gradient.U, gradient.V)] for gradient in gradients],
    )
    damped = []
    for gradient, (left, right, values) in zip(gradients, grams, strict=True):
        kept = values > LEAST * values[..., :1]
        powers = torch.where(kept, values.clamp_min(torch.finfo(values.dtype).tiny) ** (1 - 2 * damping), 0.0)
        norms = values.norm(dim=-1, keepdim=True)
        # A gradient of zeros stays one.
        powers = powers * torch.where(norms > 0, norms / powers.norm(dim=-1, keepdim=True).clamp_min(1e-300), 0.0)
        U = gradient.U @ (left * powers[..., None, :]).to(gradient.U.dtype)
        damped.append(LowRankGradient(U, gradient.V @ right.to(gradient.V.dtype)))
    return damped


def _factors(left_gram: Tensor, right_gram: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """
    What turns the factors of `U Vᵀ` into its singular vectors, `U·L` and `V·R`, and its singular values.

    With `UᵀU = E Λ Eᵀ` the columns of `U E Λ^(-1/2)` are orthonormal. Only small matrices are decomposed.
    """
    (to_left, from_left), (to_right, from_right) = _basis(left_gram), _basis(right_gram)
    P, values, Qt = svd(from_left @ from_right.mT)
    return to_left @ P, to_right @ Qt.mT, values


def _basis(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices `T` and `F` of a factor `U`: the columns of `U T` are orthonormal (or zeros), and `U = (U T) F`."""
    values, vectors = eigh(gram)
    kept = values > values[..., -1:].clamp_min(1e-300) * 1e-12
    roots = torch.where(kept, values, 1.0).sqrt()
    return vectors * torch.where(kept, 1 / roots, 0.0)[..., None, :], torch.where(kept, roots, 0.0)[
        ..., None
    ] * vectors.mT
