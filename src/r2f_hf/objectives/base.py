"""What a forget and a retain objective are, and what they are given."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor

from ..scoring import row_sums


@dataclass
class ForgetInputs:
    """
    What a forget objective is given: a batch's forget rows, token by token.

    Args:
        log_probs (`torch.Tensor` of shape `(tokens,)`):
            Log-probability of each labelled token under the model now; fp32, natural logarithm.
        rows (`torch.Tensor` of shape `(tokens,)`):
            Which row each token belongs to, int64.
        num_rows (`int`):
            Rows of the batch.
        reference_log_probs (`torch.Tensor` of shape `(tokens,)`, *optional*):
            The same under the model before unlearning, if the objective needs a reference.
    """

    log_probs: Tensor
    rows: Tensor
    num_rows: int
    reference_log_probs: Tensor | None = None

    def sum_rows(self, values: Tensor) -> Tensor:
        """Sums over each row's tokens, `(rows,)`."""
        return row_sums(values, self.rows, self.num_rows)

    @property
    def num_tokens(self) -> Tensor:
        """Labelled tokens of each row, `(rows,)`."""
        return self.sum_rows(torch.ones_like(self.log_probs))


@dataclass
class ForgetObjective:
    """
    A forget objective. A subclass is one dataclass in one file, whose fields are its options.

    Attributes:
        needs_reference (`bool`):
            Whether it compares with the log-probabilities of the model before unlearning.
        needs_retain (`bool`):
            Whether it is only defined together with a retain objective.
        mean_over (`str`):
            What the mean of its losses is taken over: `"rows"` or `"tokens"`.
    """

    needs_reference: ClassVar[bool] = False
    needs_retain: ClassVar[bool] = False
    mean_over: ClassVar[str] = "rows"

    def __call__(self, inputs: ForgetInputs) -> Tensor:
        """
        The losses of a batch.

        Args:
            inputs ([`ForgetInputs`]):
                The batch.

        Returns:
            `torch.Tensor` of shape `(rows,)` or `(tokens,)`: The trainer divides their sum by the number of rows or of
            tokens in the global batch, see `mean_over`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement __call__")


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
            At each labelled token, row by row, the most likely tokens under the model before unlearning.
        reference_top_log_probs (`torch.Tensor` of shape `(tokens, k)`, *optional*):
            Their log-probabilities, fp32.
    """

    logits: Tensor
    labels: Tensor
    reference_top_ids: Tensor | None = None
    reference_top_log_probs: Tensor | None = None


@dataclass
class RetainObjective:
    """
    A retain objective. A subclass is one dataclass, whose fields are its options.

    Attributes:
        needs_reference (`bool`):
            Whether it compares with the predictions of the model before unlearning.
    """

    needs_reference: ClassVar[bool] = False

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


def check_number(objective: ForgetObjective | RetainObjective, name: str, positive: bool = True) -> None:
    """
    Refuse an option that is not a finite number, or not above zero.

    Raises:
        `ValueError`: Naming the option and its value.
    """
    value = getattr(objective, name)
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not number or (positive and value <= 0):
        kind = "positive and finite" if positive else "a finite number"
        raise ValueError(f"`{name}` of the objective {type(objective).__name__} must be {kind}, got {value!r}.")
