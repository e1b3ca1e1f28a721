"""Gradient ascent on the likelihood of the forget set, plain and weighted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..base import ForgetInputs, ForgetObjective, check_choice, check_number


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

    A token that is unlikely by now has next to no weight.

    Args:
        beta (`float`, *optional*, defaults to `1.0`):
            Exponent `β` of the weights.
        mean_over (`str`, *optional*, defaults to `"rows"`):
            `"rows"`: the losses of a row's tokens are summed, and the mean is taken over rows. `"tokens"`: the mean is
            taken over tokens, as in the authors' code. It gives the forget loss less weight, by the mean number of
            tokens per answer.
    """

    beta: float = 1.0
    mean_over: str = "rows"

    def __post_init__(self):
        check_number(self, "beta")
        check_choice(self, "mean_over", ("rows", "tokens"))

    def __call__(self, inputs: ForgetInputs) -> Tensor:
        return (self.beta * inputs.log_probs).exp() / self.beta


@dataclass
class SatImp(ForgetObjective):
    r"""
    Saturation and importance weighting (SatImp, arXiv 2505.11953), for each token:

        L = π^β₁ · (1 - π)^β₂ · log π,    where no gradient passes through the weights

    The first weight leaves a token alone once it is unlikely. The second one leaves alone what is certain anyway.

    Args:
        beta1 (`float`, *optional*, defaults to `5.0`):
            Exponent `β₁` of the probability.
        beta2 (`float`, *optional*, defaults to `1.0`):
            Exponent `β₂` of the rest.
        mean_over (`str`, *optional*, defaults to `"rows"`):
            As in [`WeightedGradientAscent`].
    """

    beta1: float = 5.0
    beta2: float = 1.0
    mean_over: str = "rows"

    def __post_init__(self):
        check_number(self, "beta1", low=0)
        check_number(self, "beta2", low=0)
        check_choice(self, "mean_over", ("rows", "tokens"))

    def __call__(self, inputs: ForgetInputs) -> Tensor:
        probabilities = inputs.log_probs.detach().exp()
        # Rounding can put a probability a little above one.
        return probabilities**self.beta1 * (1 - probabilities).clamp_min(0) ** self.beta2 * inputs.log_probs
