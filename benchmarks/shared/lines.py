"""Lines through measured times: what a step costs at least, and what each token adds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls


# Resamples of the rounds, for intervals.
RESAMPLES = 1000


class Line(NamedTuple):
    """
    Seconds of a step, `fixed + slope * tokens`.

    Args:
        fixed (`float`):
            Seconds per step.
        slope (`float`):
            Seconds per token.
    """

    fixed: float
    slope: float

    def at(self, tokens: float) -> float:
        """Seconds of a step with so many tokens."""
        return self.fixed + self.slope * tokens


def fit(seconds: Mapping[int, float]) -> Line:
    """The line with the least relative errors (squared) among those that never fall, from seconds by tokens."""
    tokens, values = np.array(list(seconds)), np.array(list(seconds.values()))
    # In units of the largest number of tokens, since `nnls` judges its tolerance by size.
    matrix = np.stack([1 / values, tokens / tokens.max() / values], axis=1)
    (fixed, slope), _ = nnls(matrix, np.ones(len(tokens)))
    return Line(float(fixed), float(slope / tokens.max()))


def crossing(one: Line, other: Line) -> float:
    """Tokens per step from which on the first line is the lower one: 0 if it always is, infinite if it never is."""
    if one.slope >= other.slope:
        return 0.0 if one == other or (one.slope == other.slope and one.fixed < other.fixed) else np.inf
    return max(0.0, (one.fixed - other.fixed) / (other.slope - one.slope))


def resampled_fits(seconds: Mapping[str, Mapping[int, np.ndarray]]) -> dict[str, list[Line]]:
    """
    Lines through the medians of resampled rounds, for intervals. All contenders get the same rounds.

    Args:
        seconds (`Mapping[str, Mapping[int, np.ndarray]]`):
            By contender and tokens, the seconds of each round.

    Returns:
        `dict[str, list[Line]]`: [`RESAMPLES`] lines of each contender.
    """
    rounds = len(next(iter(next(iter(seconds.values())).values())))
    draws = np.random.default_rng(0).integers(rounds, size=(RESAMPLES, rounds))
    return {
        name: [fit({tokens: float(np.median(values[draw])) for tokens, values in by_tokens.items()}) for draw in draws]
        for name, by_tokens in seconds.items()
    }


def ends(values: np.ndarray) -> tuple[float, float]:
    """The ends of the 95% interval of resampled values. They may be infinite."""
    low, high = np.quantile(values, (0.025, 0.975), method="nearest")
    return float(low), float(high)
