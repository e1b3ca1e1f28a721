"""When to stop: when the forget set looks like text that the model never saw, and the retain set is kept."""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import comb

import numpy as np
import scipy
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


logger = logging.getLogger(__name__)

# A two-sample test at the field's usual level: from it on the two sets cannot be told apart.
INDISTINGUISHABLE_P_VALUE = 0.05

# The part of the retain set's mean probability that has to be there for a run to end. Forgetting is quick and takes
# much of the retain set with it; the steps after it bring that back. Ending on the forget set alone would be too soon.
KEPT = 0.97


def stop_criterion(forget: np.ndarray, holdout: np.ndarray) -> str | None:
    """
    Whether the forget set is indistinguishable from never-seen text, and by which criterion.

    Sets so small that not even complete separation would be significant, such as one row and 30, are told apart by
    their means alone.

    Args:
        forget (`np.ndarray` of shape `(rows,)`):
            Length-normalised probabilities of the forget set under the model now.
        holdout (`np.ndarray` of shape `(rows,)`):
            Those of the holdout set under the model before unlearning: what never having seen a text looks like.
            (The model now is no measure of it: going too far lowers both.)

    Returns:
        `str`, *optional*: The criterion that is met, in words, or `None`.
    """
    if forget.mean() <= holdout.mean():
        return (
            f"mean probability: the forget set's ({forget.mean():.3f}) has come down to the holdout set's "
            f"({holdout.mean():.3f})"
        )
    # That of complete separation, two of all equally likely orders.
    smallest = 2 / comb(len(forget) + len(holdout), len(forget))
    p_value = scipy.stats.ks_2samp(forget, holdout).pvalue
    if p_value >= INDISTINGUISHABLE_P_VALUE > smallest:
        return (
            "Kolmogorov-Smirnov: the forget set's probabilities cannot be told from the holdout set's "
            f"(p = {p_value:.2f})"
        )
    return None


class HoldoutStopping(TrainerCallback):
    """
    Ends training when [`stop_criterion`] is met and the retain set has kept 97% of its mean probability.

    Both are checked every `stop_check_steps` steps, the retain set on as many rows as the holdout set has.

    Args:
        probabilities (`Callable[[str], np.ndarray]`):
            Length-normalised probabilities of the `"forget"` or the `"retain"` rows under the model now.
        reference (`Callable[[str], np.ndarray]`):
            Those of the `"holdout"` or the `"retain"` rows under the model before unlearning.
        log (`Callable[[dict[str, float]], None]`):
            Logs what was found.
        stop (`Callable[[str], None]`):
            Is told why training ends.
    """

    def __init__(
        self,
        probabilities: Callable[[str], np.ndarray],
        reference: Callable[[str], np.ndarray],
        log: Callable[[dict[str, float]], None],
        stop: Callable[[str], None],
    ):
        self.probabilities, self.reference, self.log, self.stop = probabilities, reference, log, stop

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if state.global_step % args.stop_check_steps:
            return
        forget = self.probabilities("forget")
        seen = {"r2f/forget_probability": float(forget.mean())}
        reason = stop_criterion(forget, self.reference("holdout"))
        if reason is not None and args.retain_objective != "none":
            retain, before = float(self.probabilities("retain").mean()), float(self.reference("retain").mean())
            seen["r2f/retain_probability"] = retain
            kept = f", and the retain set's mean probability is {retain:.3f} (it was {before:.3f})"
            reason = reason + kept if retain >= KEPT * before else None
        # Logging clears the flag by which the step's own losses are to be logged after this.
        should_log = control.should_log
        self.log(seen)
        control.should_log = should_log
        if reason is not None:
            self.stop(reason)
            logger.warning("Stopped at step %d: %s.", state.global_step, reason)
            control.should_training_stop = True
