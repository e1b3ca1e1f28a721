"""A gradient kept in factors, `U @ V.T`, and the few operations that an update needs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor


@dataclass
class LowRankGradient:
    """
    A full-model gradient of one module in factored form, `U @ V.T`. The dense matrix is never formed.

    Both factors may carry the same leading dimensions. Every operation is then done per module. The factors must not
    be changed in place.

    Args:
        U (`torch.Tensor` of shape `(..., out_features, k)`):
            Left factor, fp32.
        V (`torch.Tensor` of shape `(..., in_features, k)`):
            Right factor, fp32.
    """

    U: Tensor
    V: Tensor

    @cached_property
    def grams(self) -> tuple[Tensor, Tensor]:
        """Gram matrices of the factors, `UᵀU` and `VᵀV`, each of shape `(..., k, k)`, computed once and kept."""
        return self.U.mT @ self.U, self.V.mT @ self.V

    def unbind(self) -> list[LowRankGradient]:
        """The gradients of the modules in the first dimension, one by one."""
        return [LowRankGradient(*factors) for factors in zip(self.U, self.V, strict=True)]

    def inner(self, other: LowRankGradient) -> Tensor:
        """
        Frobenius inner product with another factored gradient, `<U1 V1ᵀ, U2 V2ᵀ> = sum((U1ᵀU2) * (V1ᵀV2))`.

        Returns:
            `torch.Tensor` of shape `(...)`, fp32.
        """
        return ((self.U.mT @ other.U) * (self.V.mT @ other.V)).sum((-2, -1))

    def norm(self) -> Tensor:
        """
        Frobenius norm.

        Returns:
            `torch.Tensor` of shape `(...)`, fp32.
        """
        # The sum of squares of a factored matrix can come out a rounding error below zero.
        left, right = self.grams
        return (left * right).sum((-2, -1)).clamp_min(0).sqrt()

    def matmul(self, x: Tensor) -> Tensor:
        """
        Product with a thin matrix, `U (Vᵀ x)`.

        Args:
            x (`torch.Tensor` of shape `(..., in_features, p)`):
                Right-hand side.

        Returns:
            `torch.Tensor` of shape `(..., out_features, p)`.
        """
        return self.U @ (self.V.mT @ x)
