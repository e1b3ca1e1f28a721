"""Retain objectives: what holds the model where it is on the retain set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..scoring import label_log_probs
from .base import RetainInputs, RetainObjective, check_number


@dataclass
class NLL(RetainObjective):
    """Negative log-likelihood of the completions."""

    def __call__(self, inputs: RetainInputs) -> Tensor:
        log_probs, _ = label_log_probs(inputs.logits, inputs.labels)
        return -log_probs


@dataclass
class KL(RetainObjective):
    r"""
    Kullback-Leibler divergence `KL(π_ref ‖ π)` of the next-token distributions, at the positions of labelled tokens.

    The reference's distribution is kept as its `k` most likely tokens and one class for all others. The divergence of
    these `k + 1` classes bounds the one over the vocabulary from below. The two are equal where the other tokens have
    no mass.

    Args:
        k (`int`, *optional*, defaults to `64`):
            Tokens that are kept per position.
    """

    needs_reference: ClassVar[bool] = True

    k: int = 64

    def __post_init__(self):
        check_number(self, "k")
        self.k = int(self.k)

    def __call__(self, inputs: RetainInputs) -> Tensor:
        rows, positions = (inputs.labels[:, 1:] != -100).nonzero(as_tuple=True)
        log_probs = F.log_softmax(inputs.logits[rows, positions].float(), dim=-1)
        top = log_probs.gather(-1, inputs.reference_top_ids)
        reference = inputs.reference_top_log_probs
        inside = (reference.exp() * (reference - top)).sum(-1)
        # Rounding can put the sum of the top probabilities a little above one.
        rest = (1 - top.exp().sum(-1)).clamp_min(1e-6)
        reference_rest = (1 - reference.exp().sum(-1)).clamp_min(1e-6)
        outside = reference_rest * (reference_rest.log() - rest.log())
        return inside.new_zeros(len(inputs.labels)).index_add(0, rows, inside + outside)


def top_log_probs(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """
    The most likely tokens at each position, for [`KL`].

    Args:
        logits (`torch.Tensor` of shape `(..., vocabulary)`):
            The reference model's output.
        k (`int`):
            Tokens to keep; the vocabulary's size if that is smaller.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Their ids (int64) and log-probabilities (fp32), `(..., k)`.
    """
    log_probs = F.log_softmax(logits.float(), dim=-1)
    values, ids = torch.topk(log_probs, min(k, log_probs.shape[-1]), dim=-1)
    return ids, values
