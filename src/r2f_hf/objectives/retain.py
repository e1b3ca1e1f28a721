"""Retain objectives: what holds the model where it is on the retain set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from ..scoring import label_log_probs, row_sums
from .base import RetainInputs, RetainObjective, check_whole, choose_layer
from .divergences import class_log_probs, jensen_shannon, kl_divergence, top_log_probs


if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

__all__ = ["KL", "NLL", "HiddenStates", "JensenShannon", "top_log_probs"]


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
    no mass. `k=None` keeps the whole vocabulary. That takes 4 bytes of memory per retain token and token of the
    vocabulary (4,000 rows of 60 tokens at a vocabulary of 128,000: 123 GB), and as much space per checkpoint. With
    `k=64` it is 768 bytes per retain token (184 MB).

    Args:
        k (`int`, *optional*, defaults to `64`):
            Tokens that are kept per position; `None` for all.
    """

    needs_reference: ClassVar[bool] = True

    k: int | None = 64

    def __post_init__(self):
        check_whole(self, "k", optional=True)

    def __call__(self, inputs: RetainInputs) -> Tensor:
        return _per_row(inputs, lambda model, reference: kl_divergence(reference, model))


@dataclass
class JensenShannon(RetainObjective):
    r"""
    Jensen-Shannon divergence of model and reference (JensUn, arXiv 2509.02820), at the positions of labelled tokens:

        L = (KL(π ‖ m) + KL(π_ref ‖ m)) / 2,    m = (π + π_ref) / 2

    It is bounded by `log 2`. The reference is kept as in [`KL`].

    Args:
        k (`int`, *optional*, defaults to `64`):
            Tokens that are kept per position; `None` for all.
    """

    needs_reference: ClassVar[bool] = True

    k: int | None = 64

    def __post_init__(self):
        check_whole(self, "k", optional=True)

    def __call__(self, inputs: RetainInputs) -> Tensor:
        return _per_row(inputs, jensen_shannon)


@dataclass
class HiddenStates(RetainObjective):
    r"""
    Mean squared difference between a layer's outputs and those before unlearning, at the labelled tokens. It is the
    retain part of RMU (arXiv 2403.03218).

    Before the first step the outputs are kept for each token of the retain set. That takes 4 bytes per token and
    hidden unit, and as much space per checkpoint.

    Args:
        layer (`int`, *optional*):
            The layer, counted from 1. Defaults to the one at a quarter of the model's depth.
    """

    needs_hidden_states: ClassVar[bool] = True

    layer: int | None = None

    def __post_init__(self):
        check_whole(self, "layer", optional=True)

    def prepare(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        choose_layer(self, model)

    def __call__(self, inputs: RetainInputs) -> Tensor:
        rows = (inputs.labels[:, 1:] != -100).nonzero()[:, 0]
        difference = inputs.hidden_states.float() - inputs.reference_hidden_states
        return row_sums(difference.square().mean(-1), rows, len(inputs.labels))


def _per_row(inputs: RetainInputs, divergence: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """A divergence of model and reference at each labelled token, summed over each row."""
    rows, positions = (inputs.labels[:, 1:] != -100).nonzero(as_tuple=True)
    logits = inputs.logits[rows, positions]
    classes = class_log_probs(logits, inputs.reference_top_ids, inputs.reference_top_log_probs)
    return row_sums(divergence(*classes), rows, len(inputs.labels))
