"""When to stop: as soon as the forget set looks like text that the model never saw."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import ks_2samp
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


if TYPE_CHECKING:
    from .trainer import R2FTrainer

logger = logging.getLogger(__name__)

# A two-sample test at the field's usual level: above it the two sets cannot be told apart.
INDISTINGUISHABLE_P_VALUE = 0.05


def stop_criterion(forget: np.ndarray, holdout: np.ndarray) -> str | None:
    """
    Whether the forget set is indistinguishable from never-seen text, and by which criterion.

    Args:
        forget (`np.ndarray` of shape `(rows,)`):
            Length-normalised probabilities of the forget set under the model now.
        holdout (`np.ndarray` of shape `(rows,)`):
            Those of the holdout set under the model before unlearning: what never having seen a text looks like.
            (The model now is no measure of it: going too far lowers both.)

    Returns:
        `str`, *optional*: The criterion that is met, in words, or `None`.
    """
    p_value = ks_2samp(forget, holdout).pvalue
    if forget.mean() <= holdout.mean():
        return (
            f"mean probability: the forget set's ({forget.mean():.3f}) has come down to the holdout set's "
            f"({holdout.mean():.3f})"
        )
    if p_value >= INDISTINGUISHABLE_P_VALUE:
        return (
            "Kolmogorov-Smirnov: the forget set's probabilities cannot be told from the holdout set's "
            f"(p = {p_value:.2f})"
        )
    return None


class HoldoutStopping(TrainerCallback):
    """
    Ends training when [`stop_criterion`] is met, checked every `stop_check_steps` steps.

    Args:
        trainer ([`R2FTrainer`]):
            The trainer, with a holdout set. Its `stop_reason` is set.
    """

    def __init__(self, trainer: R2FTrainer):
        self.trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if state.global_step % args.stop_check_steps:
            return
        forget = [views[0] for views in self.trainer.train_examples["forget"]]
        probabilities = self.trainer.completion_probabilities(forget)
        reason = stop_criterion(probabilities, self.trainer.holdout_probabilities)
        self.trainer.log({"r2f/forget_probability": float(probabilities.mean())})
        if reason is not None:
            self.trainer.stop_reason = reason
            logger.warning("Stopped at step %d: %s.", state.global_step, reason)
            control.should_training_stop = True
