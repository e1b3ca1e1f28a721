"""Forget objectives: what is minimised on the forget set. Each is one function, chosen by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class ForgetObjective(NamedTuple):
    """
    A forget objective.

    Args:
        loss (`Callable`):
            From `(log_probs, num_tokens, reference_log_probs, beta, gamma)`, tensors of shape `(rows,)` and two
            floats, to each row's loss, of shape `(rows,)`. Log-probabilities are sums over a row's completion.
        per_token (`bool`):
            Whether the mean is over the batch's tokens; otherwise it is over its rows.
        needs_reference (`bool`):
            Whether it compares with the log-probabilities of the model before unlearning.
        needs_retain (`bool`):
            Whether it is only defined together with a retain objective.
    """

    loss: Callable[[Tensor, Tensor, Tensor | None, float, float], Tensor]
    per_token: bool = False
    needs_reference: bool = False
    needs_retain: bool = False


def gradient_ascent(
    log_probs: Tensor, num_tokens: Tensor, reference_log_probs: Tensor | None, beta: float, gamma: float
) -> Tensor:
    """Gradient ascent on the negative log-likelihood, `L = log π(y|x)`. Unbounded below: left alone it diverges."""
    return log_probs


def npo(log_probs: Tensor, num_tokens: Tensor, reference_log_probs: Tensor, beta: float, gamma: float) -> Tensor:
    r"""
    Negative Preference Optimization (arXiv 2404.05868, equation 3):

        L = -2/β · log σ(-β · log(π(y|x) / π_ref(y|x)))
    """
    return -2 / beta * F.logsigmoid(-beta * (log_probs - reference_log_probs))


def simnpo(
    log_probs: Tensor, num_tokens: Tensor, reference_log_probs: Tensor | None, beta: float, gamma: float
) -> Tensor:
    r"""
    SimNPO (arXiv 2410.07163, equation 4), length-normalised and without a reference model:

        L = -2/β · log σ(-β/|y| · log π(y|x) - γ)
    """
    return -2 / beta * F.logsigmoid(-beta * log_probs / num_tokens - gamma)


FORGET_OBJECTIVES: dict[str, ForgetObjective] = {
    "ga": ForgetObjective(gradient_ascent, per_token=True),
    "grad_diff": ForgetObjective(gradient_ascent, per_token=True, needs_retain=True),
    "npo": ForgetObjective(npo, needs_reference=True),
    "simnpo": ForgetObjective(simnpo),
}
