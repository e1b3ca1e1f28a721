"""Hinge losses on the margin between the answer's tokens and their strongest rivals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..base import ForgetInputs, ForgetObjective, check_number


@dataclass
class InvertedHinge(ForgetObjective):
    r"""
    Inverted hinge loss (LoKU, arXiv 2408.06621), mean over tokens:

        L = 1 + π(yₜ) - max over v ≠ yₜ of π(v)

    It is bounded, and raises only the strongest rival. Its gradient fades as the answer's token becomes unlikely.
    """

    needs_logits: ClassVar[bool] = True
    mean_over: ClassVar[str] = "tokens"

    def __call__(self, inputs: ForgetInputs) -> Tensor:
        probabilities = inputs.logits.float().softmax(-1)
        return 1 + token_margins(probabilities, inputs.labels)


@dataclass
class MarginCalibration(ForgetObjective):
    r"""
    Margin calibration (arXiv 2607.27836): a hinge on the logits, mean over tokens:

        L = max(0, m(yₜ) - anchor),    m(yₜ) = z(yₜ) - max over v ≠ yₜ of z(v)

    The gradient of a token is as large far above the anchor as near to it. It ends at the anchor, so that nothing
    becomes less likely than to a model that does not know.

    Args:
        anchor (`float`, *optional*):
            Margin of a model that does not know. By default it is the mean margin of the holdout set before
            unlearning, which the model never saw.
    """

    needs_logits: ClassVar[bool] = True
    mean_over: ClassVar[str] = "tokens"

    anchor: float | None = None

    def __post_init__(self):
        if self.anchor is not None:
            check_number(self, "anchor", positive=False)

    @property
    def needs_holdout_margin(self) -> bool:
        """Whether the anchor is the holdout set's."""
        return self.anchor is None

    def __call__(self, inputs: ForgetInputs) -> Tensor:
        anchor = inputs.holdout_margin if self.anchor is None else self.anchor
        return (token_margins(inputs.logits.float(), inputs.labels) - anchor).clamp_min(0)


def token_margins(scores: Tensor, labels: Tensor) -> Tensor:
    """
    By how much the labels' scores lie above the highest other ones.

    Args:
        scores (`torch.Tensor` of shape `(tokens, vocabulary)`):
            Logits or probabilities.
        labels (`torch.Tensor` of shape `(tokens,)`):
            Token ids.

    Returns:
        `torch.Tensor` of shape `(tokens,)`
    """
    own = scores.gather(-1, labels[:, None])
    rivals = scores.scatter(-1, labels[:, None], -torch.inf)
    return own[:, 0] - rivals.amax(-1)
