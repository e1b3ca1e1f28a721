"""What a forget and a retain objective are, and what they are given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..lookup import lookup
from ..scoring import row_sums


if TYPE_CHECKING:
    import numpy as np
    from torch import nn
    from transformers import PreTrainedTokenizerBase


@dataclass
class ForgetInputs:
    """
    What a forget objective is given: a batch's forget rows, token by token. What an objective does not ask for is
    `None`.

    Args:
        log_probs (`torch.Tensor` of shape `(tokens,)`):
            Log-probability of each labelled token under the model now; fp32, natural logarithm.
        rows (`torch.Tensor` of shape `(tokens,)`):
            Which row each token belongs to, int64.
        num_rows (`int`):
            Rows of the batch.
        reference_log_probs (`torch.Tensor` of shape `(tokens,)`, *optional*):
            The same under the model before unlearning (`needs_reference`).
        labels (`torch.Tensor` of shape `(tokens,)`, *optional*):
            The ids of the labelled tokens (`needs_logits`).
        logits (`torch.Tensor` of shape `(tokens, vocabulary)`, *optional*):
            The model's output at the positions that predict them (`needs_logits`).
        reference_top_ids (`torch.Tensor` of shape `(tokens, k)`, *optional*):
            The most likely tokens at these positions under the model before unlearning (`needs_distribution`). `None`
            if the whole vocabulary is there.
        reference_top_log_probs (`torch.Tensor` of shape `(tokens, k)` or `(tokens, vocabulary)`, *optional*):
            Their log-probabilities, fp32 (`needs_distribution`).
        hidden_states (`torch.Tensor` of shape `(tokens, hidden size)`, *optional*):
            The output of the objective's `layer` at the labelled tokens (`needs_hidden_states`).
        reference_norms (`torch.Tensor` of shape `(tokens,)`, *optional*):
            Norms of these states under the model before unlearning (`needs_reference_norms`).
        ignorant_log_probs (`torch.Tensor` of shape `(tokens,)`, *optional*):
            The log-probability of each token to someone who has read only the retain set (`needs_ignorance`).
        holdout_margin (`torch.Tensor` of shape `()`, *optional*):
            Mean margin of the holdout set's tokens under the model before unlearning (`needs_holdout_margin`).
        second ([`ForgetInputs`], *optional*):
            The same for second answers to the same prompts, one per row (`answers`).
    """

    log_probs: Tensor
    rows: Tensor
    num_rows: int
    reference_log_probs: Tensor | None = None
    labels: Tensor | None = None
    logits: Tensor | None = None
    reference_top_ids: Tensor | None = None
    reference_top_log_probs: Tensor | None = None
    hidden_states: Tensor | None = None
    reference_norms: Tensor | None = None
    ignorant_log_probs: Tensor | None = None
    holdout_margin: Tensor | None = None
    second: ForgetInputs | None = None

    def sum_rows(self, values: Tensor) -> Tensor:
        """Sums over each row's tokens, `(rows,)`."""
        return row_sums(values, self.rows, self.num_rows)

    @property
    def num_tokens(self) -> Tensor:
        """Labelled tokens of each row, `(rows,)`."""
        return self.sum_rows(torch.ones_like(self.log_probs))

    @property
    def positions(self) -> Tensor:
        """The place of each token in its row's answer, `(tokens,)`, int64, from 0."""
        counts = torch.bincount(self.rows, minlength=self.num_rows)
        first = counts.cumsum(0) - counts
        return torch.arange(len(self.rows), device=self.rows.device) - first[self.rows]


@dataclass
class ForgetObjective:
    """
    A forget objective. A subclass is one dataclass in one file, whose fields are its options.

    Attributes:
        needs_answers (`bool`):
            Whether it looks at the answers to forget. Without them a step reads second answers in their place.
        needs_reference (`bool`):
            Whether it compares with the log-probabilities of the model before unlearning.
        needs_retain (`bool`):
            Whether it is only defined together with a retain objective.
        needs_logits (`bool`):
            Whether it looks at more than the log-probabilities of the answers' tokens.
        needs_distribution (`bool`):
            Whether it compares with the predictions of the model before unlearning: those of its field `k` most likely
            tokens, or of the whole vocabulary if `k` is `None`.
        needs_second_distribution (`bool`):
            The same for the second answers.
        needs_hidden_states (`bool`):
            Whether it looks at the output of the layer that its field `layer` names.
        needs_reference_norms (`bool`):
            Whether it compares with the norms of these states before unlearning.
        needs_ignorance (`bool`):
            Whether it compares with what the retain set's answers alone predict.
        needs_holdout_margin (`bool`):
            Whether it compares with the margins of the holdout set before unlearning.
        answers (`str`, *optional*):
            Where its second answers come from, see [`SecondAnswers`].
        teacher_prompt (`str`, *optional*):
            A text with a `{prompt}` field. The reference of the second answers then reads it in place of the prompt.
        mean_over (`str`):
            What the mean of its losses is taken over: `"rows"`, `"tokens"` or `"second_tokens"`.
        ends (`str`):
            Where a holdout set ends a run: `"below"`, at its level or below it; `"level"`, only at its level;
            `"never"`.
        retain_factor (`float`):
            What the retain loss is multiplied by in this step, in addition to `retain_weight`.
    """

    needs_answers: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = False
    needs_retain: ClassVar[bool] = False
    needs_logits: ClassVar[bool] = False
    needs_distribution: ClassVar[bool] = False
    needs_second_distribution: ClassVar[bool] = False
    needs_hidden_states: ClassVar[bool] = False
    needs_reference_norms: ClassVar[bool] = False
    needs_ignorance: ClassVar[bool] = False
    needs_holdout_margin: ClassVar[bool] = False
    answers: ClassVar[str | None] = None
    teacher_prompt: ClassVar[str | None] = None
    mean_over: ClassVar[str] = "rows"
    ends: ClassVar[str] = "below"
    retain_factor: ClassVar[float] = 1.0

    def __call__(self, inputs: ForgetInputs) -> Tensor | Mapping[str, Tensor]:
        """
        The losses of a batch.

        Args:
            inputs ([`ForgetInputs`]):
                The batch.

        Returns:
            `torch.Tensor` of shape `(rows,)` or `(tokens,)`: The trainer divides their sum by the number of rows or of
            tokens in the global batch, see `mean_over`. Several of them by what their means are taken over are summed.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement __call__")

    def prepare(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        """
        Look at the model and its tokenizer once, before the first step.

        Args:
            model (`nn.Module`):
                The model.
            tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
                Its tokenizer.

        Raises:
            `ValueError`: If an option does not fit them.
        """

    def after_step(self, losses: Mapping[str, float]) -> None:
        """
        Take note of a step. Only for objectives that keep a state between steps.

        Args:
            losses (`Mapping[str, float]`):
                `forget_loss` and `retain_loss`, each the mean over the step's global batch.
        """

    def after_check(self, forget: np.ndarray, holdout: np.ndarray) -> None:
        """
        Take note of a check of the stopping rule. Only for objectives whose `ends` is `"level"`.

        Args:
            forget (`np.ndarray` of shape `(rows,)`):
                Length-normalised probabilities of the forget set under the model now.
            holdout (`np.ndarray` of shape `(rows,)`):
                Those of the holdout set.
        """

    def state(self) -> dict[str, Tensor]:
        """What [`after_step`] and [`after_check`] change, for the checkpoints."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Load what [`state`] gave. An empty state is that of a run that begins."""


@dataclass
class SecondAnswers(ForgetObjective):
    """
    A forget objective that compares each answer with a second one to the same prompt.

    Each step takes one second answer per forget row. Where there are several, they take turns over the epochs.

    Attributes:
        may_repeat (`bool`):
            Whether what the model writes may be the very answer that is to be forgotten.

    Args:
        answers (`str`, *optional*, defaults to `"refusals"`):
            Where the second answers come from. `"refusals"`: sentences of the package that say that one does not know.
            `"model"`: the model writes them before the first step; they are kept in the output folder. Otherwise the
            name of a column of the forget set, with a text or a list of texts, or a text file with one answer per
            line.
        num_answers (`int`, *optional*, defaults to `5`):
            Second answers per forget row, unless they come from a column.
        instruction (`str`, *optional*, defaults to `"{prompt}"`):
            What the model is asked if it writes the answers: a text with the field `{prompt}`, and possibly
            `{answer}`.
        temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of the answers that the model writes.
        max_new_tokens (`int`, *optional*, defaults to `64`):
            Longest answer that the model writes, in tokens.
    """

    may_repeat: ClassVar[bool] = False

    answers: str = "refusals"
    num_answers: int = 5
    instruction: str = "{prompt}"
    temperature: float = 1.0
    max_new_tokens: int = 64

    def __post_init__(self):
        if not isinstance(self.answers, str) or not self.answers:
            raise ValueError(
                f'`answers` of the objective {type(self).__name__} must be "refusals", "model", a column of the '
                f"forget set or a text file, got {self.answers!r}."
            )
        check_whole(self, "num_answers")
        check_whole(self, "max_new_tokens")
        check_number(self, "temperature")
        try:
            filled = self.instruction.format(prompt="Q", answer="A")
        except (AttributeError, ValueError, KeyError, IndexError):
            filled = ""
        if "Q" not in filled or "{prompt}" not in self.instruction:
            raise ValueError(
                f"`instruction` of the objective {type(self).__name__} must be a text with the field {{prompt}}, and "
                f"possibly {{answer}}, got {self.instruction!r}."
            )


@dataclass
class RetainInputs:
    """
    What a retain objective is given: a batch's retain rows.

    Args:
        logits (`torch.Tensor` of shape `(rows, length, vocabulary)`):
            The model's output.
        labels (`torch.Tensor` of shape `(rows, length)`):
            Token ids; -100 where there is nothing to predict. Position `t` predicts label `t + 1`.
        reference_top_ids (`torch.Tensor` of shape `(tokens, k)`, *optional*):
            At each labelled token, row by row, the most likely tokens under the model before unlearning. `None` if the
            whole vocabulary is there.
        reference_top_log_probs (`torch.Tensor` of shape `(tokens, k)` or `(tokens, vocabulary)`, *optional*):
            Their log-probabilities, fp32.
        hidden_states (`torch.Tensor` of shape `(tokens, hidden size)`, *optional*):
            The output of the objective's `layer` at the labelled tokens (`needs_hidden_states`).
        reference_hidden_states (`torch.Tensor` of shape `(tokens, hidden size)`, *optional*):
            The same under the model before unlearning, fp32.
    """

    logits: Tensor
    labels: Tensor
    reference_top_ids: Tensor | None = None
    reference_top_log_probs: Tensor | None = None
    hidden_states: Tensor | None = None
    reference_hidden_states: Tensor | None = None


@dataclass
class RetainObjective:
    """
    A retain objective. A subclass is one dataclass, whose fields are its options.

    Attributes:
        needs_reference (`bool`):
            Whether it compares with the predictions of the model before unlearning: those of its field `k` most likely
            tokens, or of the whole vocabulary if `k` is `None`.
        needs_hidden_states (`bool`):
            Whether it compares the outputs of the layer that its field `layer` names with those before unlearning.
    """

    needs_reference: ClassVar[bool] = False
    needs_hidden_states: ClassVar[bool] = False

    def __call__(self, inputs: RetainInputs) -> Tensor:
        """
        The losses of a batch.

        Args:
            inputs ([`RetainInputs`]):
                The batch.

        Returns:
            `torch.Tensor` of shape `(rows,)`: One loss per row, summed over its labelled tokens. The trainer divides
            their sum by the number of tokens in the global batch.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement __call__")

    def prepare(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        """As [`ForgetObjective.prepare`]."""


def check_number(
    objective: ForgetObjective | RetainObjective,
    name: str,
    positive: bool = True,
    low: float | None = None,
    high: float | None = None,
) -> None:
    """
    Refuse an option that is not a finite number, not above zero, or out of its range.

    Raises:
        `ValueError`: Naming the option and its value.
    """
    value = getattr(objective, name)
    bounded = low is not None or high is not None
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if bounded:
        within = number and (low is None or value >= low) and (high is None or value <= high)
    else:
        within = number and (not positive or value > 0)
    if not within:
        if bounded:
            kind = f"from {low:g} to {high:g}" if high is not None else f"a number of at least {low:g}"
        else:
            kind = "positive and finite" if positive else "a finite number"
        raise ValueError(f"`{name}` of the objective {type(objective).__name__} must be {kind}, got {value!r}.")


def check_whole(objective: ForgetObjective | RetainObjective, name: str, optional: bool = False) -> None:
    """
    Refuse an option that is not a whole number above zero.

    Raises:
        `ValueError`: Naming the option and its value.
    """
    value = getattr(objective, name)
    if optional and value is None:
        return
    if isinstance(value, float) and value.is_integer():
        # JSON has no whole numbers of their own.
        value = int(value)
        setattr(objective, name, value)
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        kind = "a whole number above 0" + (", or null for all" if optional else "")
        raise ValueError(f"`{name}` of the objective {type(objective).__name__} must be {kind}, got {value!r}.")


def check_choice(objective: ForgetObjective | RetainObjective, name: str, choices: tuple[str, ...]) -> None:
    """
    Refuse an option that is none of its choices.

    Raises:
        `ValueError`: Naming the option and the nearest choice.
    """
    lookup(dict.fromkeys(choices), getattr(objective, name), f"`{name}` of the objective {type(objective).__name__}")


def choose_layer(objective: ForgetObjective | RetainObjective, model: nn.Module) -> None:
    """
    Check the field `layer` of an objective, or choose one: the layer at a quarter of the model's depth.

    Raises:
        `ValueError`: If the model has no such layer.
    """
    count = model.config.get_text_config().num_hidden_layers
    if objective.layer is None:
        objective.layer = max(1, round(count / 4))
    if objective.layer > count:
        raise ValueError(
            f"`layer` of the objective {type(objective).__name__} is {objective.layer}, and the model has {count} "
            f"layers. Choose one from 1 to {count}."
        )
