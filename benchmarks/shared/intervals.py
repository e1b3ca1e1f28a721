"""A median over rounds, with its interval."""

from __future__ import annotations

import numpy as np
from scipy.stats import bootstrap


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """The median, and the ends of its 95% bootstrap interval."""
    if values.std() < 1e-12:
        return (float(np.median(values)),) * 3
    ends = bootstrap((values,), np.median, method="percentile", rng=0).confidence_interval
    return float(np.median(values)), float(ends.low), float(ends.high)
