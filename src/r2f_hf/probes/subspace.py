"""The subspaces that a module's gradients have lain in, from which the next step's probes are drawn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..gradients import LoraSketch, eigh, on_all


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
        return cls.after_all([sketch], [previous])[0]

    @classmethod
    def after_all(
        cls, sketches: Sequence[LoraSketch], previous: Sequence[GradientSubspace | None]
    ) -> list[GradientSubspace]:
        """As [`~GradientSubspace.after`], of several sketches: all that came before are known, or none is."""
        sides = [side for sketch in sketches for side in (sketch.Y, sketch.Z.mT)]
        if previous[0] is None:
            found = follow(None, sides)
        else:
            found = follow([state for subspace in previous for state in (subspace.left, subspace.right)], sides)
        return [cls(left, right) for left, right in zip(found[::2], found[1::2], strict=True)]

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


def follow(states: Sequence[Tensor] | None, sketches: Sequence[Tensor]) -> list[Tensor]:
    """The `r` leading left singular vectors, times their singular values, of each state and new sketch together."""
    grams = [(sketch.mT @ sketch).double() for sketch in sketches]
    if states is None:
        turns = on_all(of_new, [(gram,) for gram in grams])
        return [sketch @ turn.to(sketch.dtype) for sketch, (turn,) in zip(sketches, turns, strict=True)]
    # States of fewer bits are widened one by one, and not all at once for as long as this takes.
    products = [old_and_cross(state.to(sketch.dtype), sketch) for state, sketch in zip(states, sketches, strict=True)]
    turns = on_all(of_both, [(gram, *pair) for gram, pair in zip(grams, products, strict=True)])
    return [
        state.to(sketch.dtype) @ of_state.to(sketch.dtype) + sketch @ of_sketch.to(sketch.dtype)
        for state, sketch, (of_state, of_sketch) in zip(states, sketches, turns, strict=True)
    ]


def old_and_cross(state: Tensor, sketch: Tensor) -> tuple[Tensor, Tensor]:
    """Gram matrix of a state, and inner products of its columns and the sketch's; fp64."""
    return (state.mT @ state).double(), (state.mT @ sketch).double()


def of_new(gram: Tensor) -> tuple[Tensor]:
    """What turns a sketch of this Gram matrix, `(modules, r, r)`, into a state."""
    norm = frobenius(gram)
    return (leading(gram / norm.square(), gram.shape[-1]) / norm,)


def of_both(gram: Tensor, old: Tensor, cross: Tensor) -> tuple[Tensor, Tensor]:
    """
    What turns a state and a sketch into a state.

    Args:
        gram (`torch.Tensor` of shape `(modules, r, r)`):
            Gram matrix of the sketch, fp64.
        old (`torch.Tensor` of shape `(modules, r, r)`):
            Gram matrix of the state.
        cross (`torch.Tensor` of shape `(modules, r, r)`):
            Inner products of the state's columns and the sketch's.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: What to multiply the state with, and what the sketch.
    """
    rank, norm, weight = gram.shape[-1], frobenius(gram), DECAY**0.5
    # Gram matrix of the columns [√decay · state, sketch / norm], which are not put beside each other.
    new, cross = gram / norm.square(), weight * cross / norm
    whole = torch.cat([torch.cat([DECAY * old, cross], dim=-1), torch.cat([cross.mT, new], dim=-1)], dim=-2)
    of_state, of_sketch = leading(whole, rank).split(rank, dim=-2)
    return weight * of_state, of_sketch / norm


def frobenius(gram: Tensor) -> Tensor:
    """Frobenius norm of a sketch, from its Gram matrix, as `(modules, 1, 1)`; above zero."""
    norm = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None].sqrt()
    return norm.clamp_min(torch.finfo(torch.float32).tiny)


def leading(gram: Tensor, count: int) -> Tensor:
    """The leading eigenvectors, in descending order."""
    _, vectors = eigh(gram)
    return vectors[..., -count:].flip(-1)


def along(state: Tensor, random: Tensor) -> Tensor:
    """Unit vectors along the state's columns; where a column is only rounding, the random one."""
    norms = torch.linalg.vector_norm(state, dim=-2, keepdim=True)
    unit = state / norms.clamp_min(torch.finfo(state.dtype).tiny)
    return torch.where(norms > WEAKEST * norms[..., :1], unit, random)
