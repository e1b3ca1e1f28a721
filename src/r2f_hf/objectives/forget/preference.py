"""Preference objectives: the forget set's answers are the rejected ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from ..base import ForgetInputs, ForgetObjective, check_number


@dataclass
class NPO(ForgetObjective):
    r"""
    Negative Preference Optimization (arXiv 2404.05868, equation 3), for each row:

        L = -2/β · log σ(-β · log(π(y|x) / π_ref(y|x)))

    Args:
        beta (`float`, *optional*, defaults to `0.1`):
            Inverse temperature `β`.
    """

    needs_reference: ClassVar[bool] = True

    beta: float = 0.1

    def __post_init__(self):
        check_number(self, "beta")

    def __call__(self, inputs: ForgetInputs) -> Tensor:
        ratios = inputs.sum_rows(inputs.log_probs) - inputs.sum_rows(inputs.reference_log_probs)
        return -2 / self.beta * F.logsigmoid(-self.beta * ratios)


@dataclass
class TNPO(ForgetObjective):
    r"""
    Token-wise NPO (TNPO, arXiv 2502.19301): [`NPO`] of each token by itself.

    NPO leaves an answer alone once its probability is small, and a few unlikely tokens are enough for that. Here each
    token is left alone once it is unlikely itself. The losses of a row's tokens are summed, and the mean is taken over
    rows.

    Args:
        beta (`float`, *optional*, defaults to `1.0`):
            Inverse temperature `β`.
    """

    needs_reference: ClassVar[bool] = True

    beta: float = 1.0

    def __post_init__(self):
        check_number(self, "beta")

    def __call__(self, inputs: ForgetInputs) -> Tensor:
        return -2 / self.beta * F.logsigmoid(-self.beta * (inputs.log_probs - inputs.reference_log_probs))


@dataclass
class SimNPO(ForgetObjective):
    r"""
    SimNPO (arXiv 2410.07163, equation 4), length-normalised and without a reference model, for each row:

        L = -2/β · log σ(-β/|y| · log π(y|x) - γ)

    Args:
        beta (`float`, *optional*, defaults to `0.1`):
            Inverse temperature `β`.
        gamma (`float`, *optional*, defaults to `0.0`):
            Margin `γ`.
    """

    beta: float = 0.1
    gamma: float = 0.0

    def __post_init__(self):
        check_number(self, "beta")
        check_number(self, "gamma", positive=False)

    def __call__(self, inputs: ForgetInputs) -> Tensor:
        log_probs = inputs.sum_rows(inputs.log_probs)
        return -2 / self.beta * F.logsigmoid(-self.beta * log_probs / inputs.num_tokens - self.gamma)
