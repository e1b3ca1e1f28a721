"""Forget objectives: what is minimised on the forget set."""

from .ascent import GradientAscent, GradientDifference, WeightedGradientAscent
from .preference import NPO, TNPO, SimNPO


__all__ = ["NPO", "TNPO", "GradientAscent", "GradientDifference", "SimNPO", "WeightedGradientAscent"]
