"""What a model makes of each token of an answer, for exact memorisation and membership attacks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..data.collator import ForgetRetainCollator
from ..data.formatting import IGNORE_INDEX
from .completions import check_examples, over_processes
from .log_probs import completion_logits


class TokenStatistics(NamedTuple):
    """
    A row's labelled tokens, one number each.

    Args:
        log_probs (`list[float]`):
            Log-probability of the token (natural logarithm).
        means (`list[float]`):
            Mean of the log-probability of all tokens that could stand there, under the model's own distribution.
        deviations (`list[float]`):
            Its standard deviation.
        hits (`list[bool]`):
            Whether the token is the likeliest one.
    """

    log_probs: list[float]
    means: list[float]
    deviations: list[float]
    hits: list[bool]

    @property
    def loss(self) -> float:
        """The mean loss per token."""
        return -fmean(self.log_probs)


@torch.no_grad()
def token_statistics(
    model: nn.Module,
    examples: Sequence[dict[str, Any]],
    padding: int,
    batch_size: int = 16,
    desc: str | None = None,
    names: Sequence[str] | None = None,
    disable: bool = False,
) -> list[TokenStatistics]:
    """
    Compute the statistics of each labelled token.

    Args:
        model (`nn.Module`):
            The model. It is used on its own device and in its own mode (training or evaluation).
        examples (`Sequence[dict]`):
            Encoded examples with `input_ids` and `labels`. Labels are -100 where nothing is scored.
        padding (`int`):
            Id to pad with.
        batch_size (`int`, *optional*, defaults to `16`):
            Rows per forward pass. Rows of similar length share a pass.
        desc (`str`, *optional*):
            Title of the progress bar.
        names (`Sequence[str]`, *optional*):
            Names of the rows for error messages. Defaults to their numbers.
        disable (`bool`, *optional*, defaults to `False`):
            Whether to show no progress bar.

    Returns:
        `list[TokenStatistics]`: One per row, in their order. All processes get all rows.

    Raises:
        `ValueError`: If a row is longer than the model's context, or has nothing to score, or if the model gives NaN.
    """
    check_examples(model, examples, names)
    device = next(model.parameters()).device
    collator = ForgetRetainCollator(padding)

    def score(batch: list[int]) -> list[TokenStatistics]:
        inputs = {name: values.to(device) for name, values in collator([examples[i] for i in batch]).items()}
        logits, labels = completion_logits(model, inputs)
        # Row by row: an fp32 copy of all logits would be the largest tensor of the pass.
        return [_row_statistics(*row) for row in zip(logits, labels, strict=True)]

    # Longest first: if a batch does not fit in memory, the first one shows it.
    order = sorted(range(len(examples)), key=lambda index: -len(examples[index]["input_ids"]))
    rows = over_processes(score, order, batch_size, desc, disable)
    for index, row in enumerate(rows):
        if math.isnan(sum(row.log_probs)):
            name = f"Row {index}" if names is None else names[index]
            raise ValueError(f"{name} has tokens to which the model gives NaN: its weights or its precision fail.")
    return rows


def _row_statistics(logits: Tensor, labels: Tensor) -> TokenStatistics:
    """The statistics of one row; position `t` predicts label `t + 1`."""
    targets = labels[1:]
    labelled = (targets != IGNORE_INDEX).nonzero()[:, 0]
    targets = targets[labelled]
    log_probs = logits[labelled].float().log_softmax(-1)
    probs = log_probs.exp()
    # A token that a model rules out adds nothing: 0 times minus infinity is not a number.
    possible = probs > 0
    means = torch.where(possible, probs * log_probs, 0).sum(-1)
    spread = torch.where(possible, probs * (log_probs - means[:, None]).square(), 0).sum(-1)
    return TokenStatistics(
        log_probs.gather(-1, targets[:, None])[:, 0].tolist(),
        means.tolist(),
        spread.sqrt().tolist(),
        (log_probs.argmax(-1) == targets).tolist(),
    )
