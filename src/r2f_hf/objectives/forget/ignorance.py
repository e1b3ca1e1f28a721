"""An objective that ends where a model would stand that has read only the retain set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import ForgetInputs, ForgetObjective, check_number


# The part of the forget set's distance from the holdout set that one check takes away. The next check comes before the
# model has followed, so the whole distance would be too much.
FOLLOWED = 0.25
# The least and the most that targets are multiplied by. From beyond these the next checks could not bring them back.
LEAST_FACTOR, MOST_FACTOR = 0.5, 3.0


@dataclass
class Ignorance(ForgetObjective):
    r"""
    Down to ignorance, and not below it, for each token:

        L = max(0, log π(yₜ) - τₜ),    τₜ = c · log q(yₜ | the three tokens before)

    `q` is an n-gram model of the retain set's answers (`r2f_hf.data.ngrams`), to which a
    token of the prompt is no surprise. So words that any answer has stay likely, and what only the forget set tells
    becomes as unlikely as to a reader of the retain set. `c` sets the mean of `τ` to `level`.

    Updates have one norm, and the first steps go too deep. After `lift_after` steps tokens below `τ` are lifted back:

        L = Huber(log π(yₜ) - τₜ)

    Not all tokens arrive at `τ`. Once a check of the stopping rule has found the forget set more likely than the
    holdout set is now, each check corrects `τ`: `c` changes by a quarter of the difference of the two means of
    log-probabilities, relative to that of the holdout set. It stays between half and three times what it was.

    The losses of a row's tokens are summed, and the mean is taken over rows. This objective is the project's own.

    Args:
        lift_after (`int`, *optional*, defaults to `20`):
            Steps before tokens are lifted. They need about as many steps again.
        level (`float`, *optional*):
            Mean log-probability per token of answers that the model never saw, below zero. By default it is that of
            the holdout set before unlearning.
    """

    needs_ignorance: ClassVar[bool] = True
    needs_retain: ClassVar[bool] = True

    lift_after: int = 20
    level: float | None = None
    steps: int = field(default=0, init=False, repr=False)
    level_factor: float = field(default=1.0, init=False, repr=False)

    def __post_init__(self):
        check_number(self, "lift_after", low=0)
        self.lift_after = int(self.lift_after)
        if self.level is not None:
            check_number(self, "level", positive=False)
            if self.level >= 0:
                raise ValueError(f"`level` of the objective Ignorance must be below zero, got {self.level}.")

    @property
    def ends(self) -> str:
        """Nothing ends a run before tokens are lifted, and then it ends at the holdout's level, not below it."""
        return "level" if self.steps >= self.lift_after else "never"

    def __call__(self, inputs: ForgetInputs) -> Tensor:
        above = inputs.log_probs - self.level_factor * inputs.ignorant_log_probs
        if self.steps < self.lift_after:
            return F.relu(above)
        return F.huber_loss(above, torch.zeros_like(above), reduction="none")

    def after_step(self, losses: Mapping[str, float]) -> None:
        self.steps += 1

    def after_check(self, forget: np.ndarray, holdout: np.ndarray) -> None:
        level = np.log(holdout).mean()
        above = float((np.log(forget).mean() - level) / -level)
        # Until the forget set has been above for the first time, its tokens are on their way up. A row of probability
        # zero says nothing of the others.
        if isfinite(above) and (above > 0 or self.level_factor != 1):
            factor = self.level_factor + FOLLOWED * above
            self.level_factor = min(max(factor, LEAST_FACTOR), MOST_FACTOR)

    def state(self) -> dict[str, Tensor]:
        factor = torch.tensor(self.level_factor, dtype=torch.float64)
        return {"steps": torch.tensor(self.steps), "level_factor": factor}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.steps = int(state.get("steps", 0))
        self.level_factor = float(state.get("level_factor", 1.0))
