"""
The four questions that a forgetting is judged by, and their score. `lasting.py` compares it, the search maximises it.

A question has a target, and its score is how near a run is to it: 1 if the target is met, and otherwise the distance
that the target allows, divided by the run's. A run that is twice as far off as allowed has 0.5. The score of a run is
that of its worst question, so that none of them can pay for another.

| question | figure | target | distance |
|---|---|---|---|
| Is it gone? | forget quality | at least 0.05 | how far its logarithm is below 0 |
| Can one tell that it was there? | PrivLeak of the loss attack | from -15 to 15 | its size |
| Is the rest kept? | P(retain) or utility, the lower one, as parts of before's | at least 0.95 | what is lost |
| Does it last? | comeback, mean over the attacks of [`RELEARNING`] | at most 0.05 | the comeback |

The comeback of an attack is (unlearned - gold) / (before - gold). Each is the probability, after the attack, of the
answers that the attack did not use. A comeback below 0 counts as 0: answers that are less likely than to gold show in
PrivLeak.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from statistics import fmean


FORGET_QUALITY, PRIVLEAK, KEPT, COMEBACK = 0.05, 15.0, 0.95, 0.05
# The attacks that relearn a tenth of the forget rows, by their names in `r2f_hf.attacks.relearning`.
RELEARNING = {
    "comeback, rate 2e-5": "10% of the rows, rate 2e-5",
    "comeback, rate 1e-4": "10% of the rows, rate 1e-4",
    "comeback, LoRA": "10% of the rows, LoRA, rate 1e-3",
}
QUESTIONS = ("gone", "hidden", "kept", "lasts")


def kept(figures: Mapping[str, float]) -> float:
    """The lower one of the two parts of before's: P(retain), or utility."""
    return min(figures["P(retain), kept"], figures["utility, kept"])


def comeback(figures: Mapping[str, float]) -> float:
    """Mean comeback over the relearning attacks. One that teaches gold all that the model knew is left out."""
    measured = [max(figures[name], 0.0) for name in RELEARNING if name in figures]
    if not measured:
        raise ValueError("After each attack gold knows the forget set like the model before: no comeback exists.")
    return fmean(measured)


def answers(figures: Mapping[str, float]) -> dict[str, float]:
    """
    The score of each question.

    Args:
        figures (`Mapping[str, float]`):
            Figures of a run, see [`~shared.lasting_runs.figures`].

    Returns:
        `dict[str, float]`: By question a number from 0 to 1. One that cannot be answered is absent.
    """
    found = {
        "gone": nearness(-log(FORGET_QUALITY), -log(max(figures["forget quality"], 1e-300))),
        "kept": nearness(1 - KEPT, 1 - kept(figures)),
        "lasts": nearness(COMEBACK, comeback(figures)),
    }
    # Where a loss tells gold's forget rows from the holdout's without fail, PrivLeak does not exist.
    return found | ({"hidden": nearness(PRIVLEAK, abs(figures["PrivLeak"]))} if "PrivLeak" in figures else {})


def nearness(allowed: float, distance: float) -> float:
    """1 if a distance is allowed, and otherwise the allowed part of it."""
    return 1.0 if distance <= allowed else allowed / distance


def score(figures: Mapping[str, float]) -> float:
    """The score of the worst question, from 0 to 1."""
    return min(answers(figures).values())
