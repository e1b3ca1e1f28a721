"""Forget and retain objectives, chosen by name."""

from ..scoring.log_probs import completion_logits, label_log_probs, row_sums, token_log_probs
from .forget import FORGET_OBJECTIVES, ForgetObjective
from .retain import RETAIN_OBJECTIVES, RetainObjective


__all__ = [
    "FORGET_OBJECTIVES",
    "RETAIN_OBJECTIVES",
    "ForgetObjective",
    "RetainObjective",
    "completion_logits",
    "label_log_probs",
    "row_sums",
    "token_log_probs",
]
