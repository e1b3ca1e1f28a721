"""Preference objectives: the forget set's answers are the rejected ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from ..base import ForgetInputs, ForgetObjective, SecondAnswers, check_choice, check_number


# What the model is asked for an answer that could be true of somebody else.
ALTERNATIVE = (
    "{prompt}\n\nA correct answer would be: {answer}\n\nWrite another answer to the question. It has the same form "
    "and is believable, but all of its facts are invented. Write the answer only."
)


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
    token is left alone once it is unlikely itself.

    Args:
        beta (`float`, *optional*, defaults to `1.0`):
            Inverse temperature `β`.
        mean_over (`str`, *optional*, defaults to `"rows"`):
            `"rows"`: the losses of a row's tokens are summed, and the mean is taken over rows. `"tokens"`: the mean is
            taken over tokens, as in the authors' code. It gives the forget loss less weight, by the mean number of
            tokens per answer.
    """

    needs_reference: ClassVar[bool] = True

    beta: float = 1.0
    mean_over: str = "rows"

    def __post_init__(self):
        check_number(self, "beta")
        check_choice(self, "mean_over", ("rows", "tokens"))

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


@dataclass
class DPO(SecondAnswers):
    r"""
    Direct Preference Optimization (arXiv 2305.18290, equation 7) with a second answer `y'` as the chosen one, for each
    row:

        L = -log σ(β · log(π(y'|x) / π_ref(y'|x)) - β · log(π(y|x) / π_ref(y|x)))

    Args:
        beta (`float`, *optional*, defaults to `0.1`):
            Inverse temperature `β`.
        definition (`str`, *optional*, defaults to `"paper"`):
            `"paper"`, or `"open-unlearning"`: times `2/β`, as in [`NPO`] and in the code of the unlearning benchmarks.
        answers, num_answers, instruction, temperature, max_new_tokens:
            As in [`SecondAnswers`].
    """

    needs_reference: ClassVar[bool] = True

    beta: float = 0.1
    definition: str = "paper"

    def __post_init__(self):
        super().__post_init__()
        check_number(self, "beta")
        check_choice(self, "definition", ("paper", "open-unlearning"))

    def __call__(self, inputs: ForgetInputs) -> Tensor:
        second = inputs.second
        chosen = second.sum_rows(second.log_probs - second.reference_log_probs)
        rejected = inputs.sum_rows(inputs.log_probs - inputs.reference_log_probs)
        scale = 2 / self.beta if self.definition == "open-unlearning" else 1.0
        return -scale * F.logsigmoid(self.beta * (chosen - rejected))


@dataclass
class AltPO(DPO):
    r"""
    Alternate Preference Optimization (AltPO, arXiv 2409.13474): [`DPO`] times `2/β`, where the chosen
    answers are believable alternatives that the model itself writes before the first step.

    The alternatives are kept in `second_answers.jsonl` in the output folder, and a resumed run reads them from its
    checkpoint.

    Args:
        beta, definition:
            As in [`DPO`].
        answers, num_answers, instruction, temperature, max_new_tokens:
            As in [`SecondAnswers`], with an `instruction` that asks for an invented answer.
    """

    answers: str = "model"
    instruction: str = ALTERNATIVE
    definition: str = "open-unlearning"
