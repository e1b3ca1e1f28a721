"""Forget and retain objectives, chosen by name."""

from .base import ForgetInputs, ForgetObjective, RetainInputs, RetainObjective
from .registry import FORGET_OBJECTIVES, RETAIN_OBJECTIVES, build_objective


__all__ = [
    "FORGET_OBJECTIVES",
    "RETAIN_OBJECTIVES",
    "ForgetInputs",
    "ForgetObjective",
    "RetainInputs",
    "RetainObjective",
    "build_objective",
]
