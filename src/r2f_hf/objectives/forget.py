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
        beta (`float`):
            Default of `beta`.
        each_token (`bool`):
            Whether it is of each token by itself: rows are then tokens, and the losses of a row's are summed.
        per_token (`bool`):
            Whether the mean is over the batch's tokens; otherwise it is over its rows.
        needs_reference (`bool`):
            Whether it compares with the log-probabilities of the model before unlearning.
        needs_retain (`bool`):
            Whether it is only defined together with a retain objective.
    """

    loss: Callable[[Tensor, Tensor, Tensor | None, float, float], Tensor]
    beta: float = 0.1
    each_token: bool = False
    per_token: bool = False
    needs_reference: bool = False
    needs_retain: bool = False


def gradient_ascent(
    log_probs: Tensor, num_tokens: Tensor, reference_log_probs: Tensor | None, beta: float, gamma: float
) -> Tensor:
    """Gradient ascent on the negative log-likelihood, `L = log π(y|x)`. Unbounded below: left alone it diverges."""
    return log_probs


def weighted_gradient_ascent(
    log_probs: Tensor, num_tokens: Tensor, reference_log_probs: Tensor | None, beta: float, gamma: float
) -> Tensor:
    r"""
    Weighted gradient ascent (WGA, arXiv 2502.19301), of a token:

        ∇L = π(yₜ|x, y₁..yₜ₋₁)^β · ∇log π(yₜ|x, y₁..yₜ₋₁),    so    L = π^β / β

    A token that is unlikely by now weighs next to nothing.
    """
    return (beta * log_probs).exp() / beta


def npo(log_probs: Tensor, num_tokens: Tensor, reference_log_probs: Tensor, beta: float, gamma: float) -> Tensor:
    r"""
    Negative Preference Optimization (arXiv 2404.05868, equation 3):

        L = -2/β · log σ(-β · log(π(y|x) / π_ref(y|x)))
    """
    return -2 / beta * F.logsigmoid(-beta * (log_probs - reference_log_probs))


def tnpo(log_probs: Tensor, num_tokens: Tensor, reference_log_probs: Tensor, beta: float, gamma: float) -> Tensor:
    r"""
    Token-wise NPO (TNPO, arXiv 2502.19301): [`npo`] of each token by itself.

    NPO leaves an answer alone once its probability is small, for which a few of its tokens can be enough. Here each
    token is left alone once it is unlikely itself.
    """
    return npo(log_probs, num_tokens, reference_log_probs, beta, gamma)


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
    "wga": ForgetObjective(weighted_gradient_ascent, beta=1.0, each_token=True),
    "npo": ForgetObjective(npo, needs_reference=True),
    "simnpo": ForgetObjective(simnpo),
    "tnpo": ForgetObjective(tnpo, beta=1.0, each_token=True, needs_reference=True),
}
