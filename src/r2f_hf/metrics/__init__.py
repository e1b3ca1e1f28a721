"""Forget and retain metrics as `evaluate` modules, one file each. They work on numbers, not on a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..lookup import lookup


if TYPE_CHECKING:
    from evaluate import Metric

# The file of each metric by its name. The folders stand for the questions that the metrics answer.
METRICS = {
    file.stem: file
    for room in ("memorisation", "privacy", "utility")
    for file in sorted((Path(__file__).parent / room).glob("[!_]*.py"))
}


def load(name: str) -> Metric:
    """
    Load a metric of this package. No network is needed.

    Args:
        name (`str`):
            The name of a file in `metrics/memorisation/`, `metrics/privacy/` or `metrics/utility/`, such as
            `"truth_ratio"`. `METRICS` has them all.

    Returns:
        [`~evaluate.Metric`]

    Raises:
        `ValueError`: If there is no such metric.
    """
    import evaluate

    # In memory, `evaluate` writes no files. So several processes cannot disturb each other.
    return evaluate.load(str(lookup(METRICS, name, "metric")), keep_in_memory=True)
