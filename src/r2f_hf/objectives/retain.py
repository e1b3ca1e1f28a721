"""Retain objectives: what holds the model where it is on the retain set. Each is one function, chosen by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..scoring.log_probs import label_log_probs


# How many of the reference model's most likely tokens are kept at each position for the KL objective.
KL_TOP_TOKENS = 64


class RetainObjective(NamedTuple):
    """
    A retain objective.

    Args:
        loss (`Callable`):
            From `(logits, labels, reference_top_ids, reference_top_log_probs)` to each row's loss summed over its
            labelled tokens, of shape `(rows,)`. The mean is taken over the batch's tokens.
        needs_reference (`bool`):
            Whether it compares with the predictions of the model before unlearning.
    """

    loss: Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]
    needs_reference: bool = False


def nll(
    logits: Tensor, labels: Tensor, reference_top_ids: Tensor | None, reference_top_log_probs: Tensor | None
) -> Tensor:
    """Negative log-likelihood of the completions."""
    log_probs, _ = label_log_probs(logits, labels)
    return -log_probs


def kl(logits: Tensor, labels: Tensor, reference_top_ids: Tensor, reference_top_log_probs: Tensor) -> Tensor:
    r"""
    Kullback-Leibler divergence `KL(π_ref ‖ π)` of the next-token distributions, at the positions of labelled tokens.

    The reference's distribution is kept as its `k` most likely tokens and one class for all others; the divergence of
    these `k + 1` classes bounds the one over the vocabulary from below, and equals it where the others have no mass.
    """
    rows, positions = (labels[:, 1:] != -100).nonzero(as_tuple=True)
    log_probs = F.log_softmax(logits[rows, positions].float(), dim=-1)
    top = log_probs.gather(-1, reference_top_ids[rows, positions])
    reference = reference_top_log_probs[rows, positions]
    inside = (reference.exp() * (reference - top)).sum(-1)
    # Rounding can put the sum of the top probabilities a little above one.
    rest = (1 - top.exp().sum(-1)).clamp_min(1e-6)
    reference_rest = (1 - reference.exp().sum(-1)).clamp_min(1e-6)
    outside = reference_rest * (reference_rest.log() - rest.log())
    return inside.new_zeros(len(labels)).index_add(0, rows, inside + outside)


def top_log_probs(logits: Tensor, k: int = KL_TOP_TOKENS) -> tuple[Tensor, Tensor]:
    """
    The most likely tokens at each position, for [`kl`].

    Args:
        logits (`torch.Tensor` of shape `(rows, length, vocabulary)`):
            The reference model's output.
        k (`int`, *optional*, defaults to `64`):
            Tokens to keep; the vocabulary's size if that is smaller.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Their ids (int64) and log-probabilities (fp32), `(rows, length, k)`.
    """
    log_probs = F.log_softmax(logits.float(), dim=-1)
    values, ids = torch.topk(log_probs, min(k, log_probs.shape[-1]), dim=-1)
    return ids, values


RETAIN_OBJECTIVES: dict[str, RetainObjective] = {
    "nll": RetainObjective(nll),
    "kl": RetainObjective(kl, needs_reference=True),
}
