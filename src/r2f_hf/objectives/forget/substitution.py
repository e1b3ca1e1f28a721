"""Objectives that put something else in the place of the forget set's answers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import ForgetInputs, ForgetObjective, SecondAnswers, check_choice


if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase


@dataclass
class IDK(SecondAnswers):
    """
    Negative log-likelihood of a second answer, by default a refusal (IDK, arXiv 2401.06121), mean over tokens.

    It teaches the new answer, and never reads the old one.

    Args:
        answers, num_answers, instruction, temperature, max_new_tokens:
            As in [`SecondAnswers`].
    """

    needs_answers: ClassVar[bool] = False
    mean_over: ClassVar[str] = "second_tokens"

    def __call__(self, inputs: ForgetInputs) -> Tensor:
        return -inputs.second.log_probs


@dataclass
class FLAT(SecondAnswers):
    r"""
    Forget-data-only loss adjustment (FLAT, arXiv 2410.11143), for each row:

        L = -g(P(y')) + f*(g(P(y))),    P(y) = (1/|y|) · Σₜ π(yₜ|x, y₁..yₜ₋₁)

    `y'` is a second answer, `g` and `f*` are the variational function and the conjugate of an f-divergence. It needs
    no reference, and its authors take no retain loss (`retain_objective="none"`).

    Args:
        divergence (`str`, *optional*, defaults to `"kl"`):
            `"kl"`, `"total_variation"`, `"jensen_shannon"` or `"pearson"`.
        answers, num_answers, instruction, temperature, max_new_tokens:
            As in [`SecondAnswers`].
    """

    divergence: str = "kl"

    def __post_init__(self):
        super().__post_init__()
        check_choice(self, "divergence", ("kl", "total_variation", "jensen_shannon", "pearson"))

    def __call__(self, inputs: ForgetInputs) -> Tensor:
        old, new = (each.sum_rows(each.log_probs.exp()) / each.num_tokens for each in (inputs, inputs.second))
        return self._conjugate(self._variational(old)) - self._variational(new)

    def _variational(self, value: Tensor) -> Tensor:
        if self.divergence == "total_variation":
            return value.tanh() / 2
        if self.divergence == "jensen_shannon":
            return math.log(2) + F.logsigmoid(value)
        return value

    def _conjugate(self, value: Tensor) -> Tensor:
        if self.divergence == "kl":
            return (value - 1).exp()
        if self.divergence == "jensen_shannon":
            return -torch.log(2 - value.exp())
        return value if self.divergence == "total_variation" else value.square() / 4 + value


@dataclass
class JensUn(ForgetObjective):
    r"""
    JensUn (arXiv 2509.02820): Jensen-Shannon divergence to the tokens of a fixed text, repeated along the answer, for
    each token:

        L = JS(π, δ) = log 2 + (q · log q - (1 + q) · log(1 + q)) / 2,    q = π of the text's token

    It is bounded by `log 2`. Its authors take [`JensenShannon`][r2f_hf.objectives.retain.JensenShannon] as the retain
    objective.

    Args:
        target (`str`, *optional*, defaults to `"No idea"`):
            The text.
        divergence (`str`, *optional*, defaults to `"jensen_shannon"`):
            `"jensen_shannon"`, or `"kl"` for `KL(δ ‖ π) = -log q`, which is unbounded.
    """

    needs_logits: ClassVar[bool] = True
    mean_over: ClassVar[str] = "tokens"

    target: str = "No idea"
    divergence: str = "jensen_shannon"
    token_ids: list[int] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self):
        check_choice(self, "divergence", ("jensen_shannon", "kl"))
        if not isinstance(self.target, str) or not self.target.strip():
            raise ValueError(f"`target` of the objective JensUn must be a text, got {self.target!r}.")

    def prepare(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        self.token_ids = tokenizer(f" {self.target.strip()}", add_special_tokens=False)["input_ids"]
        if not self.token_ids or tokenizer.unk_token_id in self.token_ids:
            raise ValueError(
                f"`target` of the objective JensUn is {self.target!r}, which the tokenizer does not know. Choose a "
                "text of the model's language."
            )

    def __call__(self, inputs: ForgetInputs) -> Tensor:
        ids = torch.tensor(self.token_ids, device=inputs.logits.device)
        ids = ids[inputs.positions % len(ids)]
        log_q = -F.cross_entropy(inputs.logits.float(), ids, reduction="none")
        if self.divergence == "kl":
            return -log_q
        q = log_q.exp()
        return math.log(2) + (q * log_q - (1 + q) * q.log1p()) / 2
