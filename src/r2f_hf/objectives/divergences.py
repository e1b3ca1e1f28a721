"""Divergences between next-token distributions of which one is kept as its most likely tokens."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


# Rounding can put the sum of the top probabilities a little above one.
SMALLEST_REST = 1e-6


def top_log_probs(logits: Tensor, k: int | None) -> tuple[Tensor | None, Tensor]:
    """
    The most likely tokens at each position.

    Args:
        logits (`torch.Tensor` of shape `(..., vocabulary)`):
            The reference model's output.
        k (`int`, *optional*):
            Tokens to keep; the vocabulary's size if that is smaller. `None` keeps all, in the vocabulary's order.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Their ids (int64, `None` for all) and log-probabilities (fp32),
        `(..., k)`.
    """
    log_probs = F.log_softmax(logits.float(), dim=-1)
    if k is None:
        return None, log_probs
    values, ids = torch.topk(log_probs, min(k, log_probs.shape[-1]), dim=-1)
    return ids, values


def class_log_probs(logits: Tensor, top_ids: Tensor | None, top: Tensor) -> tuple[Tensor, Tensor]:
    """
    Two distributions over the same classes: the reference's top tokens and one class for all others.

    Args:
        logits (`torch.Tensor` of shape `(tokens, vocabulary)`):
            The model's output.
        top_ids (`torch.Tensor` of shape `(tokens, k)`, *optional*):
            Ids of the reference's top tokens; `None` if `top` has the whole vocabulary.
        top (`torch.Tensor` of shape `(tokens, k)`):
            Their log-probabilities under the reference.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Log-probabilities of the classes under the model and under the reference,
        `(tokens, k + 1)`, or `(tokens, vocabulary)` where no token is left out.
    """
    log_probs = F.log_softmax(logits.float(), dim=-1)
    if top_ids is None:
        return log_probs, top
    return with_rest(log_probs.gather(-1, top_ids)), with_rest(top)


def with_rest(top: Tensor) -> Tensor:
    """Add the log-probability of all tokens that are not among the top ones, `(..., k + 1)`."""
    rest = (1 - top.exp().sum(-1, keepdim=True)).clamp_min(SMALLEST_REST)
    return torch.cat([top, rest.log()], dim=-1)


def kl_divergence(first: Tensor, second: Tensor) -> Tensor:
    """`KL(first ‖ second)` of log-probabilities `(..., classes)`, summed over the classes."""
    return (first.exp() * (first - second)).sum(-1)


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """Jensen-Shannon divergence of log-probabilities `(..., classes)`, in nats, summed over the classes."""
    middle = torch.logaddexp(first, second) - math.log(2)
    return (kl_divergence(first, middle) + kl_divergence(second, middle)) / 2
