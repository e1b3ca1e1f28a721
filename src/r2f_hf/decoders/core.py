"""What the two sketches of a gradient say about it, in orthonormal coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..gradients import LoraSketch, LowRankGradient, eigh, on_all, svd


# Directions of a probe that are shorter than this part of the longest one carry more rounding than signal.
SHORTEST_PROBE = 3e-3

# Columns of factors come in multiples of this many. On a CPU, a product with 30 columns takes longer than with 32.
_COLUMNS = 16


@dataclass
class SketchCore:
    r"""
    A sketch in orthonormal coordinates, split into the blocks that it holds exactly and one that a decoder estimates.

    Let `Qa` be an orthonormal basis of the rows of `A` that a decoder may use and `Qb` one of the columns of `B`. In
    bases that start with them, the gradient is

        [ C    G12 ]     C = Qbᵀ G Qa
        [ G21  G22 ]

    and the sketches hold all of it except `G22 = (I - Qb Qbᵀ) G (I - Qa Qaᵀ)`. With `C = P Σ Qᵀ`, the generalized
    Nyström approximation (Tropp et al. 2017, Nakatsukasa 2020) of the missing block is `G21 Q φ(Σ) Pᵀ G12` with
    `φ(σ) = 1/σ`. A decoder chooses a better `φ`. Keeping the known blocks costs nothing. It is the projection onto all
    matrices that agree with both sketches, so it can only bring the reconstruction nearer to `G`.

    Args:
        right (`torch.Tensor` of shape `(..., out_features, a)`):
            `G Qa`.
        left (`torch.Tensor` of shape `(..., in_features, b)`):
            `Gᵀ Qb`.
        right_basis (`torch.Tensor` of shape `(..., in_features, a)`):
            `Qa`. A direction that the probe lacks is a column of zeros.
        left_basis (`torch.Tensor` of shape `(..., out_features, b)`):
            `Qb`.
        P (`torch.Tensor` of shape `(..., b, k)`):
            Left singular vectors of `C`, `k = min(a, b)`.
        sigma (`torch.Tensor` of shape `(..., k)`):
            Singular values of `C`, in descending order.
        Q (`torch.Tensor` of shape `(..., a, k)`):
            Right singular vectors of `C`.
        right_gram (`torch.Tensor` of shape `(..., a, a)`):
            Gram matrix of `right`, fp64.
        left_gram (`torch.Tensor` of shape `(..., b, b)`):
            Gram matrix of `left`, fp64.
    """

    right: Tensor
    left: Tensor
    right_basis: Tensor
    left_basis: Tensor
    P: Tensor
    sigma: Tensor
    Q: Tensor
    right_gram: Tensor
    left_gram: Tensor

    @classmethod
    def of(cls, sketch: LoraSketch) -> SketchCore:
        """
        The core of a sketch, computed from the rows that are not held out.

        Args:
            sketch ([`LoraSketch`]):
                The sketch of one module, or of several modules of one shape.
        """
        return cls.of_all([sketch])[0]

    @classmethod
    def of_all(cls, sketches: Sequence[LoraSketch]) -> list[SketchCore]:
        """[`~SketchCore.of`] for several sketches. Their small matrices are decomposed together."""
        probes = [side for sketch in sketches for side in (sketch.right_probe.mT, sketch.B)]
        to_orthonormal = orthonormalizers(probes)
        bases = [probe @ matrix for probe, matrix in zip(probes, to_orthonormal, strict=True)]
        right = [sketch.right @ matrix for sketch, matrix in zip(sketches, to_orthonormal[::2], strict=True)]
        left = [sketch.Z.mT @ matrix for sketch, matrix in zip(sketches, to_orthonormal[1::2], strict=True)]
        decompositions = on_all(svd, [(basis.mT @ side,) for basis, side in zip(bases[1::2], right, strict=True)])
        # The Gram matrices of the sketches are wide sums, and the subspaces need them too.
        right_grams = [sketch.grams[0][..., : sketch.decodable, : sketch.decodable] for sketch in sketches]
        left_grams = [sketch.grams[1] for sketch in sketches]
        turned = [
            [matrix.double().mT @ gram @ matrix.double() for matrix, gram in zip(matrices, grams, strict=True)]
            for matrices, grams in ((to_orthonormal[::2], right_grams), (to_orthonormal[1::2], left_grams))
        ]
        parts = zip(right, left, bases[::2], bases[1::2], decompositions, zip(*turned, strict=True), strict=True)
        return [cls(*sides, P, sigma, Qh.mT, *grams) for *sides, (P, sigma, Qh), grams in parts]

    @property
    def inverse_sigma(self) -> Tensor:
        """`1 / σ`, and 0 where the core has no such direction; of shape `(..., k)`."""
        floor = self.sigma[..., :1] * torch.finfo(self.sigma.dtype).eps
        return torch.where(self.sigma > floor, 1 / self.sigma, 0)

    @property
    def terms(self) -> tuple[Tensor, Tensor]:
        """`Y = G21 Q` of shape `(..., out_features, k)`, and `Z = G12ᵀ P` of shape `(..., in_features, k)`."""
        return (
            self.right @ self.Q - self.left_basis @ self._core_left,
            self.left @ self.P - self.right_basis @ (self.Q * self.sigma.unsqueeze(-2)),
        )

    def reconstruct(self, phi: Tensor) -> LowRankGradient:
        """
        The known blocks, and the missing block as the sum `Σ φₖ Yₖ Zₖᵀ` over [`~SketchCore.terms`].

        Args:
            phi (`torch.Tensor` of shape `(..., k)`):
                The filter `φ`.

        Returns:
            [`LowRankGradient`]: The reconstruction, of rank at most `a + b`. Columns of zeros fill up its factors.
        """
        core_left = self._core_left
        # The columns are scaled before they are mixed: where `φ` is huge, they are tiny.
        joined = (self.right @ self.Q).sub_(self.left_basis @ core_left).mul_(phi.unsqueeze(-2))
        # The left sketch without what the right one already holds. All its columns stay, even where `P` has fewer.
        rest = self.left - self.right_basis @ (self.Q @ core_left.mT)
        return LowRankGradient(
            U=filled_up(self.right, (joined @ self.P.mT).add_(self.left_basis)),
            V=filled_up(self.right_basis, rest),
        )

    @property
    def _core_left(self) -> Tensor:
        return self.P * self.sigma.unsqueeze(-2)


def filled_up(*columns: Tensor) -> Tensor:
    """Columns next to each other, and columns of zeros after them up to a multiple of [`_COLUMNS`]."""
    missing = -sum(part.shape[-1] for part in columns) % _COLUMNS
    return torch.cat([*columns, columns[0].new_zeros(*columns[0].shape[:-1], missing)], dim=-1)


def orthonormalizers(bases: Sequence[Tensor]) -> list[Tensor]:
    """
    The matrices `W` that make the columns of `basis @ W` orthonormal. Directions that are missing become zeros.

    They come from the Gram matrix, which costs far less than a QR decomposition of a tall matrix. The columns are
    probes, which are either exactly dependent or far from it.

    Args:
        bases (`Sequence[torch.Tensor]`):
            The columns, each of shape `(..., n, r)`.

    Returns:
        `list[torch.Tensor]`: Each of shape `(..., r, r)`.
    """
    roots = on_all(inverse_root, [((basis.mT @ basis).double(),) for basis in bases])
    return [root.to(basis.dtype) for (root,), basis in zip(roots, bases, strict=True)]


def inverse_root(gram: Tensor) -> tuple[Tensor]:
    """`V Λ^(-1/2)` of Gram matrices `V Λ Vᵀ`, of shape `(..., r, r)`. Missing directions are zeros."""
    values, vectors = eigh(gram)
    keep = values > SHORTEST_PROBE**2 * values[..., -1:]
    scale = torch.where(keep & (values > 0), values, torch.inf).rsqrt()
    return (vectors * scale.unsqueeze(-2),)
