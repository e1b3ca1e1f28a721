"""Objectives on what goes on inside the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..base import ForgetInputs, ForgetObjective, check_number, check_whole, choose_layer


if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase


@dataclass
class RMU(ForgetObjective):
    r"""
    Representation misdirection (RMU, arXiv 2403.03218): the outputs of a layer at the answer's tokens are
    drawn to a random direction, mean over tokens and hidden units:

        L = ‖h(x) - c · u‖²

    Its retain part is `retain_objective="hidden_states"` with the same `layer`.

    Args:
        layer (`int`, *optional*):
            The layer, counted from 1. Defaults to the one at a quarter of the model's depth.
        coefficient (`float`, *optional*, defaults to `20.0`):
            Length `c` of the direction.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the direction `u`.
    """

    needs_hidden_states: ClassVar[bool] = True
    mean_over: ClassVar[str] = "tokens"

    layer: int | None = None
    coefficient: float = 20.0
    seed: int = 0

    def __post_init__(self):
        check_whole(self, "layer", optional=True)
        check_number(self, "coefficient")

    def prepare(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        choose_layer(self, model)

    def __call__(self, inputs: ForgetInputs) -> Tensor:
        states = inputs.hidden_states.float()
        return (states - self._lengths(inputs) * self._direction(states)).square().mean(-1)

    def _lengths(self, inputs: ForgetInputs) -> Tensor | float:
        return self.coefficient

    def _direction(self, states: Tensor) -> Tensor:
        """The random direction, `(hidden size,)`: the same in every step and on every process."""
        direction = torch.rand(states.shape[-1], generator=torch.Generator().manual_seed(self.seed))
        return (direction / direction.norm()).to(states.device)


@dataclass
class AdaptiveRMU(RMU):
    r"""
    Adaptive RMU (arXiv 2408.06223): [`RMU`] whose direction is as long as `coefficient` times the norm of
    the token's own output before unlearning. One coefficient then fits all layers.

    Args:
        layer, seed:
            As in [`RMU`].
        coefficient (`float`, *optional*, defaults to `5.0`):
            Length of the direction, as a multiple of that norm.
    """

    needs_reference_norms: ClassVar[bool] = True

    coefficient: float = 5.0

    def _lengths(self, inputs: ForgetInputs) -> Tensor | float:
        return self.coefficient * inputs.reference_norms[:, None]
