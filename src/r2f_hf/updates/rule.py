"""The update rule: from a decoded gradient to the direction that a weight is moved along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..gradients import LowRankGradient
from ..gradients.stacking import stack, unstack
from .retained_inputs import RetainedInputs, protect
from .second_moments import SecondMoments


class UpdateRule:
    """
    The update rule of modules of one shape, and what it remembers from step to step.

    Args:
        adaptive (`bool`):
            Whether rows and columns are rescaled by their running mean squares, as in Adafactor.
        retained (`Sequence[RetainedInputs]`, *optional*):
            For each module the inputs that it gets on the retain set, to be protected from updates.

    Attributes:
        moments ([`SecondMoments`], *optional*):
            Mean squares of the rows and columns of the modules' gradients so far.
    """

    def __init__(self, adaptive: bool, retained: Sequence[RetainedInputs] | None = None):
        self.adaptive, self.retained = adaptive, retained
        self.moments: SecondMoments | None = None

    def state_dict(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The moments of each module by name. Empty if there are none yet."""
        if self.moments is None:
            return {}
        sides = {"rows": self.moments.rows, "columns": self.moments.columns}
        return unstack(names, sides)

    def load_state_dict(self, state: Mapping[str, Tensor], names: Sequence[str], device: torch.device) -> None:
        """Load the moments of the named modules. If one of them has none in `state`, none are loaded."""
        if self.adaptive and all(f"{name}.rows" in state for name in names):
            self.moments = SecondMoments(*(stack(state, names, side, device) for side in ("rows", "columns")))

    def rescale(self, gradient: LowRankGradient) -> LowRankGradient:
        """Update the moments with the gradients of a step, and divide the gradients by their roots."""
        if not self.adaptive:
            return gradient
        self.moments = SecondMoments.after(gradient, self.moments)
        return self.moments.scale(gradient)

    def protect(self, gradient: LowRankGradient) -> LowRankGradient:
        """Take away what the modules would notice on the retain set."""
        return gradient if self.retained is None else protect(gradient, self.retained)


def step_factors(norms: Tensor, normalize: bool, max_norm: float | None) -> Tensor:
    """
    The factor that each direction is multiplied by, before the learning rate.

    Args:
        norms (`torch.Tensor` of shape `(modules,)`):
            Frobenius norms of the directions.
        normalize (`bool`):
            Whether every module takes a step of the same norm.
        max_norm (`float`, *optional*):
            Without `normalize`: the largest norm of all modules together. `None` or 0 sets no limit.

    Returns:
        `torch.Tensor` of shape `(modules,)`: The factors.
    """
    if normalize:
        return 1 / norms
    return torch.full_like(norms, min(1.0, max_norm / norms.norm().item()) if max_norm else 1.0)
