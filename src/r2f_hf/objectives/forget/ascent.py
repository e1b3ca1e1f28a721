"""Gradient ascent on the likelihood of the forget set, plain and weighted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..base import ForgetInputs, ForgetObjective, check_number


@dataclass
class GradientAscent(ForgetObjective):
    """
    Gradient ascent on the negative log-likelihood, `L = log π(y|x)`, mean over tokens.

    It is unbounded below: left alone it diverges.
    """

    mean_over: ClassVar[str] = "tokens"

    def __call__(self, inputs: ForgetInputs) -> Tensor:
        return inputs.log_probs


@dataclass
class GradientDifference(GradientAscent):
    """[`GradientAscent`] minus a retain loss, so that it needs a retain objective (arXiv 2203.12817)."""

    needs_retain: ClassVar[bool] = True


@dataclass
class WeightedGradientAscent(ForgetObjective):
    r"""
    Weighted gradient ascent (WGA, arXiv 2502.19301), for each token:

        ∇L = π(yₜ|x, y₁..yₜ₋₁)^β · ∇log π(yₜ|x, y₁..yₜ₋₁),    so    L = π^β / β

    A token that is unlikely by now has next to no weight. The losses of a row's tokens are summed, and the mean is
    taken over rows.

    Args:
        beta (`float`, *optional*, defaults to `1.0`):
            Exponent `β` of the weights.
    """

    beta: float = 1.0

    def __post_init__(self):
        check_number(self, "beta")

    def __call__(self, inputs: ForgetInputs) -> Tensor:
        return (self.beta * inputs.log_probs).exp() / self.beta
