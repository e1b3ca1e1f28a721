"""Forgetting under a constraint on the retain loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..base import ForgetInputs, ForgetObjective, check_number


@dataclass
class PDU(ForgetObjective):
    r"""
    Primal-dual unlearning (PDU, arXiv 2506.05314): flat logits on the forget set, as far as the retain loss stays
    below a limit, mean over tokens:

        L = (max over v of z(v) - mean over v of z(v))²,    λ ← max(0, λ + η · (retain loss - ε))

    The retain loss is multiplied by `λ` in each step, in addition to `retain_weight`. `λ` is a part of the
    checkpoints.

    Args:
        retain_limit (`float`, *optional*, defaults to `0.5`):
            The limit `ε` of the retain loss.
        dual_step (`float`, *optional*, defaults to `1.0`):
            Step size `η` of `λ`; 0 leaves it as it is.
        dual_start (`float`, *optional*, defaults to `1.0`):
            `λ` of the first step.
    """

    needs_logits: ClassVar[bool] = True
    needs_retain: ClassVar[bool] = True
    mean_over: ClassVar[str] = "tokens"

    retain_limit: float = 0.5
    dual_step: float = 1.0
    dual_start: float = 1.0
    retain_factor: float = field(default=math.nan, init=False, repr=False)

    def __post_init__(self):
        check_number(self, "retain_limit", low=0)
        check_number(self, "dual_step", low=0)
        check_number(self, "dual_start", low=0)
        self.retain_factor = float(self.dual_start)

    def __call__(self, inputs: ForgetInputs) -> Tensor:
        logits = inputs.logits.float()
        return (logits.amax(-1) - logits.mean(-1)).square()

    def after_step(self, losses: Mapping[str, float]) -> None:
        loss = losses["retain_loss"]
        # A step whose loss is no number changes neither the weights nor this.
        if math.isfinite(loss):
            self.retain_factor = max(0.0, self.retain_factor + self.dual_step * (loss - self.retain_limit))

    def state(self) -> dict[str, Tensor]:
        return {"retain_factor": torch.tensor(self.retain_factor, dtype=torch.float64)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.retain_factor = float(state.get("retain_factor", self.dual_start))
