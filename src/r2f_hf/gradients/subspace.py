"""The subspaces that a module's gradients have lain in, from which the next step's probes are drawn."""

from __future__ import annotations

from collections.abc import Sequence

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

    Both may carry the same leading dimensions, for modules of one shape.

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
        left, right = (None, None) if previous is None else (previous.left, previous.right)
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
        turned = along(self.right, A.mT).mT
        return torch.cat([turned[..., :warm, :], A[..., warm:, :]], dim=-2), along(self.left, B)


def follow(state: Tensor | None, sketch: Tensor) -> Tensor:
    """The `r` leading left singular vectors, times their singular values, of the state and the new sketch together."""
    rank = sketch.shape[-1]
    norm = torch.linalg.matrix_norm(sketch, keepdim=True).clamp_min(torch.finfo(sketch.dtype).tiny)
    columns = sketch / norm if state is None else torch.cat([DECAY**0.5 * state, sketch / norm], dim=-1)
    # Through the small Gram matrix; eigenvalues come in ascending order.
    _, vectors = eigh((columns.mT @ columns).double())
    return columns @ vectors[..., -rank:].flip(-1).to(columns.dtype)


def follow_all(sketches: Sequence[LoraSketch], previous: Sequence[GradientSubspace | None]) -> list[GradientSubspace]:
    """[`GradientSubspace.after`] for many modules; those of one shape at once."""
    followed: dict[int, GradientSubspace] = {}
    for indices, sketch in LoraSketch.by_shape(sketches):
        new = GradientSubspace.after(sketch, stack([previous[index] for index in indices]))
        followed |= {i: GradientSubspace(*sides) for i, *sides in zip(indices, new.left, new.right, strict=True)}
    return [followed[index] for index in range(len(sketches))]


def stack(subspaces: Sequence[GradientSubspace | None]) -> GradientSubspace | None:
    """Those of modules of one shape as one, with a leading dimension. They begin together, or have not begun."""
    if subspaces[0] is None:
        return None
    return GradientSubspace(*(torch.stack([getattr(one, side) for one in subspaces]) for side in ("left", "right")))


def along(state: Tensor, random: Tensor) -> Tensor:
    """Unit vectors along the state's columns; where a column is only rounding, the random one."""
    norms = torch.linalg.vector_norm(state, dim=-2, keepdim=True)
    return torch.where(norms > WEAKEST * norms[..., :1], normalize(state, dim=-2), random)
