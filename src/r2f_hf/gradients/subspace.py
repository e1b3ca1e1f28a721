"""The subspaces that a module's gradients have lain in, from which the next step's probes are drawn."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .decompositions import eigh
from .sketch import LoraSketch


# Weight of the past in the tracked subspaces, per step.
DECAY = 0.9

# A direction that weighs less than this part of the strongest one is rounding; a random probe takes its place.
WEAKEST = 1e-3


class GradientSubspace:
    r"""
    The dominant row and column space of one module's gradients over the last steps, for warm probes.

    Minibatch gradients of consecutive steps are almost orthogonal to each other as matrices, but they share much of
    their row and column spaces. Probing along these measures more of a gradient than probing blindly, as the warm
    start of PowerSGD (Vogels et al. 2019) does. With the sketches `Y = G Aᵀ` and `Z = Bᵀ G` of a step, each side keeps
    the `r` leading left singular vectors, with their singular values, of

        [ √decay · state,  Y / ‖Y‖ ]      and      [ √decay · state,  Zᵀ / ‖Z‖ ]

    Both may carry the same leading dimensions, for modules of one shape, and fewer bits than the sketches.

    Args:
        left (`torch.Tensor` of shape `(..., out_features, r)`):
            State of the column space: orthogonal columns, their norms the weights of the directions.
        right (`torch.Tensor` of shape `(..., in_features, r)`):
            State of the row space.
    """

    def __init__(self, left: Tensor, right: Tensor):
        self.left, self.right = left, right

    @classmethod
    def after(cls, sketch: LoraSketch, previous: GradientSubspace | None) -> GradientSubspace:
        """The subspaces once a step's sketch is known."""
        if previous is None:
            return cls(follow(None, sketch.Y), follow(None, sketch.Z.mT))
        left, right = (state.to(sketch.Y.dtype) for state in (previous.left, previous.right))
        return cls(follow(left, sketch.Y), follow(right, sketch.Z.mT))

    def probes(self, A: Tensor, B: Tensor, random_rows: int) -> tuple[Tensor, Tensor]:
        """
        Turn random probes into warm ones. The held-out rows must stay random: only such rows measure the error.

        Args:
            A (`torch.Tensor` of shape `(..., r, in_features)`):
                Random right probe.
            B (`torch.Tensor` of shape `(..., out_features, r)`):
                Random left probe.
            random_rows (`int`):
                How many of the last rows of `A` stay as they are.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: `A` and `B`.
        """
        warm = max(0, A.shape[-2] - random_rows)
        turned = along(self.right.to(A.dtype), A.mT).mT
        return torch.cat([turned[..., :warm, :], A[..., warm:, :]], dim=-2), along(self.left.to(B.dtype), B)


def follow(state: Tensor | None, sketch: Tensor) -> Tensor:
    """The `r` leading left singular vectors, times their singular values, of the state and the new sketch together."""
    rank = sketch.shape[-1]
    gram = (sketch.mT @ sketch).double()
    norm = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None].sqrt().clamp_min(torch.finfo(sketch.dtype).tiny)
    new = gram / norm.square()
    if state is None:
        return sketch @ (leading(new, rank) / norm).to(sketch.dtype)
    # Gram matrix of the columns [√decay · state, sketch / norm], which are not put beside each other.
    weight = DECAY**0.5
    cross = weight * (state.mT @ sketch).double() / norm
    old = DECAY * (state.mT @ state).double()
    whole = torch.cat([torch.cat([old, cross], dim=-1), torch.cat([cross.mT, new], dim=-1)], dim=-2)
    of_state, of_sketch = leading(whole, rank).split(rank, dim=-2)
    return state @ (weight * of_state).to(sketch.dtype) + sketch @ (of_sketch / norm).to(sketch.dtype)


def leading(gram: Tensor, count: int) -> Tensor:
    """The leading eigenvectors, in descending order."""
    _, vectors = eigh(gram)
    return vectors[..., -count:].flip(-1)


def along(state: Tensor, random: Tensor) -> Tensor:
    """Unit vectors along the state's columns; where a column is only rounding, the random one."""
    norms = torch.linalg.vector_norm(state, dim=-2, keepdim=True)
    return torch.where(norms > WEAKEST * norms[..., :1], normalize(state, dim=-2), random)
