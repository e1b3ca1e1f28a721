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
    their row and column spaces. Probing along these spaces measures more of a gradient than random probes do. PowerSGD
    (Vogels et al. 2019, arXiv 1905.13727) starts warm for the same reason. Let `Y = G Aᵀ` and `Z = Bᵀ G` be the
    sketches of a step. The new states are the `r` leading left singular vectors, times their singular values, of

        [ √decay · state,  Y / ‖Y‖ ]      and      [ √decay · state,  Zᵀ / ‖Z‖ ]

    Both states may carry the same leading dimensions, for modules of one shape. They may have a lower precision than
    the sketches.

    Args:
        left (`torch.Tensor` of shape `(..., out_features, r)`):
            State of the column space: orthogonal columns, whose norms are the weights of the directions.
        right (`torch.Tensor` of shape `(..., in_features, r)`):
            State of the row space, likewise.
    """

    def __init__(self, left: Tensor, right: Tensor):
        self.left, self.right = left, right

    @classmethod
    def after(cls, sketch: LoraSketch, previous: GradientSubspace | None) -> GradientSubspace:
        """The subspaces after a step, from its sketch and the subspaces before it."""
        return cls.after_all([sketch], [previous])[0]

    @classmethod
    def after_all(
        cls, sketches: Sequence[LoraSketch], previous: Sequence[GradientSubspace | None]
    ) -> list[GradientSubspace]:
        """[`~GradientSubspace.after`] for several sketches. Either all of them have subspaces so far, or none has."""
        sides = [side for sketch in sketches for side in (sketch.Y, sketch.Z.mT)]
        # A direction of weight 1e-3 counts as 1e-6 in a Gram matrix. In fp32 it would be a tenth rounding.
        grams = [gram for sketch in sketches for gram in sketch.grams]
        if previous[0] is None:
            updated = update_states(None, sides, grams)
        else:
            states = [state for subspace in previous for state in (subspace.left, subspace.right)]
            updated = update_states(states, sides, grams)
        return [cls(left, right) for left, right in zip(updated[::2], updated[1::2], strict=True)]

    def probes(self, A: Tensor, B: Tensor, random_rows: int) -> tuple[Tensor, Tensor]:
        """
        Turn random probes into warm ones. Held-out rows must stay random, since only random rows measure the error.

        Args:
            A (`torch.Tensor` of shape `(..., r, in_features)`):
                Random right probe.
            B (`torch.Tensor` of shape `(..., out_features, r)`):
                Random left probe.
            random_rows (`int`):
                Number of the last rows of `A` that stay as they are.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: The warm `A` and `B`.
        """
        warm = max(0, A.shape[-2] - random_rows)
        turned = along(self.right.to(A.dtype), A.mT).mT
        return torch.cat([turned[..., :warm, :], A[..., warm:, :]], dim=-2), along(self.left.to(B.dtype), B)


def update_states(
    states: Sequence[Tensor] | None, sketches: Sequence[Tensor], grams: Sequence[Tensor]
) -> list[Tensor]:
    """The `r` leading left singular vectors of each state and its new sketch together, times the singular values."""
    if states is None:
        turns = on_all(of_new, [(gram,) for gram in grams])
        return [sketch @ turn.to(sketch.dtype) for sketch, (turn,) in zip(sketches, turns, strict=True)]
    # States of a lower precision are widened one by one, so that only one of them is held twice at a time.
    products = [old_and_cross(state.to(sketch.dtype), sketch) for state, sketch in zip(states, sketches, strict=True)]
    turns = on_all(of_both, [(gram, *pair) for gram, pair in zip(grams, products, strict=True)])
    return [
        state.to(sketch.dtype) @ of_state.to(sketch.dtype) + sketch @ of_sketch.to(sketch.dtype)
        for state, sketch, (of_state, of_sketch) in zip(states, sketches, turns, strict=True)
    ]


def old_and_cross(state: Tensor, sketch: Tensor) -> tuple[Tensor, Tensor]:
    """Gram matrix of a state, and inner products of its columns with those of the sketch; fp64."""
    return (state.mT @ state).double(), (state.mT @ sketch).double()


def of_new(gram: Tensor) -> tuple[Tensor]:
    """The matrix that turns a sketch with this Gram matrix, `(modules, r, r)`, into a state."""
    norm = frobenius(gram)
    return (leading(gram / norm.square(), gram.shape[-1]) / norm,)


def of_both(gram: Tensor, old: Tensor, cross: Tensor) -> tuple[Tensor, Tensor]:
    """
    The matrices that turn a state and a sketch into the next state.

    Args:
        gram (`torch.Tensor` of shape `(modules, r, r)`):
            Gram matrix of the sketch, fp64.
        old (`torch.Tensor` of shape `(modules, r, r)`):
            Gram matrix of the state.
        cross (`torch.Tensor` of shape `(modules, r, r)`):
            Inner products of the state's columns with those of the sketch.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: The matrices to multiply the state and the sketch by.
    """
    rank, norm, weight = gram.shape[-1], frobenius(gram), DECAY**0.5
    # Gram matrix of the columns [√decay · state, sketch / norm], without concatenating these columns.
    new, cross = gram / norm.square(), weight * cross / norm
    whole = torch.cat([torch.cat([DECAY * old, cross], dim=-1), torch.cat([cross.mT, new], dim=-1)], dim=-2)
    of_state, of_sketch = leading(whole, rank).split(rank, dim=-2)
    return weight * of_state, of_sketch / norm


def frobenius(gram: Tensor) -> Tensor:
    """Frobenius norm of a sketch, from its Gram matrix, as `(modules, 1, 1)`; above zero."""
    norm = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None].sqrt()
    return norm.clamp_min(torch.finfo(torch.float32).tiny)


def leading(gram: Tensor, count: int) -> Tensor:
    """The leading eigenvectors, in descending order of their eigenvalues."""
    _, vectors = eigh(gram)
    return vectors[..., -count:].flip(-1)


def along(state: Tensor, random: Tensor) -> Tensor:
    """Unit vectors along the state's columns. A random column replaces one that is only rounding."""
    norms = torch.linalg.vector_norm(state, dim=-2, keepdim=True)
    unit = state / norms.clamp_min(torch.finfo(state.dtype).tiny)
    return torch.where(norms > WEAKEST * norms[..., :1], unit, random)
