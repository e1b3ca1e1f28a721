"""Self-distillation: the model before unlearning is the teacher, and what it says is changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import ForgetInputs, ForgetObjective, SecondAnswers, check_number, check_whole
from ..divergences import class_log_probs, kl_divergence


@dataclass
class UNDIAL(ForgetObjective):
    r"""
    Self-distillation with adjusted logits (UNDIAL, arXiv 2402.10052): cross-entropy to what the model said
    before, where the logit of the answer's token is lowered by `β`, mean over tokens.

    The teacher's distribution is kept as in [`KL`][r2f_hf.objectives.retain.KL]: `k=None` takes 4 bytes per forget
    token and token of the vocabulary (40 rows of 60 tokens at a vocabulary of 49,152: 472 MB), and as much per
    checkpoint.

    Args:
        beta (`float`, *optional*, defaults to `10.0`):
            By how much the logit is lowered.
        k (`int`, *optional*, defaults to `64`):
            Tokens of the teacher's distribution that are kept; `None` for all.
    """

    needs_logits: ClassVar[bool] = True
    needs_distribution: ClassVar[bool] = True
    mean_over: ClassVar[str] = "tokens"

    beta: float = 10.0
    k: int | None = 64

    def __post_init__(self):
        check_number(self, "beta")
        check_whole(self, "k", optional=True)

    def __call__(self, inputs: ForgetInputs) -> Tensor:
        model, target = _demoted(inputs, torch.full_like(inputs.log_probs, self.beta))
        return -(target.exp() * model).sum(-1)


@dataclass
class CEU(ForgetObjective):
    r"""
    Cross-entropy unlearning (CE-U, arXiv 2503.01224): cross-entropy to the model's own distribution without the
    answer's token, through which no gradient passes, mean over tokens.
    """

    needs_logits: ClassVar[bool] = True
    mean_over: ClassVar[str] = "tokens"

    def __call__(self, inputs: ForgetInputs) -> Tensor:
        logits = inputs.logits.float()
        target = logits.detach().scatter(-1, inputs.labels[:, None], -torch.inf).softmax(-1)
        return -(target * logits.log_softmax(-1)).sum(-1)


@dataclass
class SHRED(ForgetObjective):
    r"""
    Retain-free self-distillation (SHRED, arXiv 2605.07482): KL divergence from a changed teacher, mean over tokens.

    The model before unlearning is the teacher. The answer's tokens that surprised it most carry what is to be
    forgotten: there their logits are lowered. At all other tokens it says what it said, which holds the model in place
    of a retain set. So take `retain_objective="none"`.

    Args:
        fraction (`float`, *optional*, defaults to `0.3`):
            Part of each answer's tokens that are forgotten: those with the lowest probability before unlearning.
        demotion (`float`, *optional*, defaults to `10.0`):
            By how much their logits are lowered.
        k (`int`, *optional*, defaults to `64`):
            Tokens of the teacher's distribution that are kept; `None` for all, see [`UNDIAL`].
    """

    needs_logits: ClassVar[bool] = True
    needs_distribution: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True
    mean_over: ClassVar[str] = "tokens"

    fraction: float = 0.3
    demotion: float = 10.0
    k: int | None = 64

    def __post_init__(self):
        check_number(self, "fraction", low=0, high=1)
        check_number(self, "demotion")
        check_whole(self, "k", optional=True)

    def __call__(self, inputs: ForgetInputs) -> Tensor:
        forgotten = _least_likely(inputs, self.fraction)
        model, target = _demoted(inputs, self.demotion * forgotten.to(inputs.log_probs.dtype))
        return kl_divergence(target, model)


@dataclass
class DUET(SecondAnswers):
    r"""
    Distillation from a prompted teacher (DUET, arXiv 2601.21283): the teacher is the model before unlearning, which is
    told in its prompt that it does not know. The student gets the prompt alone, and matches the teacher's `k` most
    likely tokens along a refusal:

        L = mean over these tokens of smooth L1(log π(v|x) - log π_ref(v|instruction, x))

    It reads the forget set's questions, and never its answers: any text may stand in their place. Log-probabilities
    are compared in place of logits, whose level means nothing.

    Args:
        teacher_prompt (`str`, *optional*):
            What the teacher reads in place of the prompt: a text with the field `{prompt}`.
        k (`int`, *optional*, defaults to `100`):
            Tokens that are matched per position.
        answers, num_answers, instruction, temperature, max_new_tokens:
            As in [`SecondAnswers`].
    """

    needs_answers: ClassVar[bool] = False
    needs_logits: ClassVar[bool] = True
    needs_second_distribution: ClassVar[bool] = True
    mean_over: ClassVar[str] = "second_tokens"

    teacher_prompt: str = (
        "You do not know anything about the following question. Say so, and give no answer.\n\n{prompt}"
    )
    k: int = 100

    def __post_init__(self):
        super().__post_init__()
        check_whole(self, "k")
        if not isinstance(self.teacher_prompt, str) or "{prompt}" not in self.teacher_prompt:
            raise ValueError(
                f"`teacher_prompt` of the objective DUET must be a text with the field {{prompt}}, got "
                f"{self.teacher_prompt!r}."
            )

    def __call__(self, inputs: ForgetInputs) -> Tensor:
        second = inputs.second
        model = second.logits.float().log_softmax(-1).gather(-1, second.reference_top_ids)
        return F.smooth_l1_loss(model, second.reference_top_log_probs, reduction="none").mean(-1)


def _demoted(inputs: ForgetInputs, amounts: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the model, and of the reference with the answer's logits lowered by `(tokens,)`."""
    ids, labels = inputs.reference_top_ids, inputs.labels[:, None]
    model, reference = class_log_probs(inputs.logits, ids, inputs.reference_top_log_probs)
    if ids is None:
        return model, reference.scatter_add(-1, labels, -amounts[:, None]).log_softmax(-1)
    # A token that is not among the top ones is in the rest, and has next to no mass to lose.
    lowered = F.pad((ids == labels) * amounts[:, None], (0, 1))
    return model, (reference - lowered).log_softmax(-1)


def _least_likely(inputs: ForgetInputs, fraction: float) -> Tensor:
    """Which tokens are among the part of their row that was least likely before unlearning; at least one per row."""
    order = inputs.reference_log_probs.argsort(stable=True)
    order = order[inputs.rows[order].argsort(stable=True)]
    # Tokens follow one another row by row, before and after the sorting.
    ranks = torch.empty_like(order).index_copy_(0, order, inputs.positions)
    return ranks < (fraction * inputs.num_tokens).ceil().clamp_min(1)[inputs.rows]
