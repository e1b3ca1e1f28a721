"""Bootstrapping: what the model itself believes in is lowered along with the answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..base import ForgetInputs, ForgetObjective, SecondAnswers, check_number, check_whole


@dataclass
class BootstrappedTokens(ForgetObjective):
    r"""
    Bootstrapping by tokens (BS-T, arXiv 2510.19422): ascent on a soft label, mean over tokens:

        L = Σᵥ t(v) · log π(v),    t = (1 - λ) · one-hot(yₜ) + λ · softmax over the k most likely tokens of π

    No gradient passes through `t`. Ascent on the answer's token alone moves its mass to other wordings of it. Here
    they are lowered too.

    Args:
        weight (`float`, *optional*, defaults to `0.5`):
            The part `λ` of the model's own belief, from 0 to 1.
        k (`int`, *optional*, defaults to `10`):
            Tokens of that belief.
        beta (`float`, *optional*, defaults to `1.0`):
            Each token's loss is weighted by `π(yₜ)^β`, as in
            [`WeightedGradientAscent`][r2f_hf.objectives.forget.ascent.WeightedGradientAscent], so that what is
            forgotten is left alone. 0 is plain ascent, which is unbounded.
    """

    needs_logits: ClassVar[bool] = True
    mean_over: ClassVar[str] = "tokens"

    weight: float = 0.5
    k: int = 10
    beta: float = 1.0

    def __post_init__(self):
        check_number(self, "weight", low=0, high=1)
        check_number(self, "beta", low=0)
        check_whole(self, "k")

    def __call__(self, inputs: ForgetInputs) -> Tensor:
        return soft_ascent(inputs, self.weight, self.k, self.beta)


@dataclass
class BootstrappedSequences(SecondAnswers):
    r"""
    Bootstrapping by sequences (BS-S, arXiv 2510.19422): [`BootstrappedTokens`] on the answers, and on answers that the
    model itself gives to the same prompts.

    The model writes these before the first step, see [`SecondAnswers`].

    Args:
        weight, k, beta:
            As in [`BootstrappedTokens`].
        sequence_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the model's own answers.
        answers, num_answers, instruction, temperature, max_new_tokens:
            As in [`SecondAnswers`].
    """

    needs_logits: ClassVar[bool] = True
    # A model that knows the answer believes in it.
    may_repeat: ClassVar[bool] = True

    answers: str = "model"
    weight: float = 0.5
    k: int = 10
    beta: float = 1.0
    sequence_weight: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_number(self, "weight", low=0, high=1)
        check_number(self, "beta", low=0)
        check_number(self, "sequence_weight", low=0)
        check_whole(self, "k")

    def __call__(self, inputs: ForgetInputs) -> Mapping[str, Tensor]:
        own, written = (soft_ascent(each, self.weight, self.k, self.beta) for each in (inputs, inputs.second))
        return {"tokens": own, "second_tokens": self.sequence_weight * written}


def soft_ascent(inputs: ForgetInputs, weight: float, k: int, beta: float) -> Tensor:
    """
    Log-likelihood of labels that are a mixture of the answer's token and of the model's own belief.

    Args:
        inputs ([`ForgetInputs`]):
            The batch, with logits.
        weight (`float`):
            The belief's part of the label.
        k (`int`):
            Tokens of the belief.
        beta (`float`):
            Exponent of the weight of each token.

    Returns:
        `torch.Tensor` of shape `(tokens,)`
    """
    log_probs = inputs.logits.float().log_softmax(-1)
    top = log_probs.topk(min(k, log_probs.shape[-1])).values
    believed = (top.detach().softmax(-1) * top).sum(-1)
    answers = log_probs.gather(-1, inputs.labels[:, None])[:, 0]
    return (beta * answers.detach()).exp() * ((1 - weight) * answers + weight * believed)
