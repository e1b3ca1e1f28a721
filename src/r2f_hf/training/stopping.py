"""When to stop: once the forget set looks like text that the model never saw, and the retain set is kept."""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import comb

import numpy as np
import scipy
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..objectives import ForgetObjective


logger = logging.getLogger(__name__)

# The usual level of a two-sample test. From this p-value on, the two sets cannot be told apart.
INDISTINGUISHABLE_P_VALUE = 0.05

# A run ends only if the retain set has this part of its mean probability from before. Forgetting is quick and harms
# the retain set, and the steps after it repair that. A run that looked only at the forget set would end too soon.
KEPT = 0.97

# With an objective that comes back from below, a loss attack has to be this near to a coin's AUC of 0.5. Whoever
# compares losses could tell a set far below the holdout set too.
NEAR = 0.03


def stop_criterion(forget: np.ndarray, holdout: np.ndarray, ends: str = "below") -> str | None:
    """
    Decide whether the forget set can no longer be told from text that the model never saw.

    Either of two criteria is enough:

    - the mean probability of the forget set is no higher than that of the holdout set;
    - a two-sample Kolmogorov-Smirnov test does not tell the two sets apart. It is used only if the sets are large
      enough for it. (For one row and 30, even complete separation would not be significant.)

    Args:
        forget (`np.ndarray` of shape `(rows,)`):
            Length-normalised probabilities of the forget set under the model now.
        holdout (`np.ndarray` of shape `(rows,)`):
            Length-normalised probabilities of the holdout set under the model before unlearning. They show what text
            looks like that the model never saw. (The model now would not do: going too far lowers both sets.) With
            `"level"` they are those under the model now, as an attacker sees them.
        ends (`str`, *optional*, defaults to `"below"`):
            `ends` of the forget objective. With `"level"` there is one criterion: the loss attack that tells the two
            sets apart has an AUC from 0.47 to 0.53, or as near to 0.5 as few rows allow.

    Returns:
        `str`, *optional*: The criterion that is met, in words, or `None`.
    """
    if ends == "level":
        auc, near = _loss_attack(forget, holdout)
        return f"loss attack: it has an AUC of {auc:.2f}" if abs(auc - 0.5) <= near else None
    if forget.mean() <= holdout.mean():
        return (
            f"mean probability: the forget set's ({forget.mean():.3f}) has come down to the holdout set's "
            f"({holdout.mean():.3f})"
        )
    # The p-value of complete separation: two of all equally likely orders of the rows separate the sets completely.
    smallest = 2 / comb(len(forget) + len(holdout), len(forget))
    p_value = scipy.stats.ks_2samp(forget, holdout).pvalue
    if p_value >= INDISTINGUISHABLE_P_VALUE > smallest:
        return (
            "Kolmogorov-Smirnov: the forget set's probabilities cannot be told from the holdout set's "
            f"(p = {p_value:.2f})"
        )
    return None


def _loss_attack(forget: np.ndarray, holdout: np.ndarray) -> tuple[float, float]:
    """The AUC with which losses tell the two sets apart, and how far from 0.5 it may be."""
    auc = scipy.stats.mannwhitneyu(forget, holdout).statistic / (len(forget) * len(holdout))
    # Few rows have no finer ranks: with each row of one set just above a row of the other, the AUC is off by this.
    return float(auc), max(NEAR, 0.5 / min(len(forget), len(holdout))) + 1e-9


class HoldoutStopping(TrainerCallback):
    """
    Ends training when [`stop_criterion`] is met and the retain set has at least 97% of its mean probability from
    before.

    Both are checked every `stop_check_steps` steps. The retain set is checked on as many rows as the holdout set has.
    Without a retain objective only the forget set is checked. A warning says so if the run ends far below the holdout
    set, where losses show what was deleted.

    Args:
        probabilities (`Callable[[str], np.ndarray]`):
            From `"forget"`, `"holdout"` or `"retain"` to the length-normalised probabilities of these rows under the
            model now.
        reference (`Callable[[str], np.ndarray]`):
            From `"holdout"` or `"retain"` to the length-normalised probabilities of these rows under the model before
            unlearning.
        log (`Callable[[dict[str, float]], None]`):
            Logs `r2f/forget_probability` and, if the retain set was checked, `r2f/retain_probability`.
        stop (`Callable[[str], None]`):
            Takes the reason, in words, when training ends.
        objective ([`ForgetObjective`]):
            The forget objective, which says where a run may end.
    """

    def __init__(
        self,
        probabilities: Callable[[str], np.ndarray],
        reference: Callable[[str], np.ndarray],
        log: Callable[[dict[str, float]], None],
        stop: Callable[[str], None],
        objective: ForgetObjective,
    ):
        self.probabilities, self.reference, self.log, self.stop = probabilities, reference, log, stop
        self.objective = objective

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        ends = self.objective.ends
        # Scoring the sets takes as long as a step or two.
        if state.global_step % args.stop_check_steps or ends == "never":
            return
        forget = self.probabilities("forget")
        metrics = {"r2f/forget_probability": float(forget.mean())}
        holdout = self.probabilities("holdout") if ends == "level" else self.reference("holdout")
        reason = stop_criterion(forget, holdout, ends)
        if ends == "level":
            self.objective.after_check(forget, holdout)
        if reason is not None and args.retain_objective != "none":
            retain, before = float(self.probabilities("retain").mean()), float(self.reference("retain").mean())
            metrics["r2f/retain_probability"] = retain
            kept = f", and the retain set's mean probability is {retain:.3f} (it was {before:.3f})"
            reason = reason + kept if retain >= KEPT * before else None
        # Logging clears `should_log`. The losses of this step, which are logged after this callback, still need it.
        should_log = control.should_log
        self.log(metrics)
        control.should_log = should_log
        if reason is not None:
            self.stop(reason)
            logger.warning("Stopped at step %d: %s.", state.global_step, reason)
            auc, near = _loss_attack(forget, holdout if ends == "level" else self.probabilities("holdout"))
            if auc < 0.5 - near:
                logger.warning(
                    "The forget set is now less likely than the holdout set: a loss attack has an AUC of %.2f, where "
                    '0.5 is a coin\'s. So losses show what was deleted. `forget_objective="ignorance"` brings the '
                    "forget set back up to the holdout set's level (recipes/lasting).",
                    auc,
                )
            control.should_training_stop = True
