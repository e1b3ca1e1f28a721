"""Forget and retain metrics as `evaluate` modules, one file each. They work on numbers, not on a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..lookup import lookup


if TYPE_CHECKING:
    from evaluate import Metric

# The file of each metric by its name. The folders stand for the questions that the metrics answer.
METRICS = {
    name: Path(__file__).parent / room / f"{name}.py"
    for room, names in {
        "memorisation": ("probability", "rouge_l_recall", "truth_ratio"),
        "privacy": ("forget_quality",),
        "utility": ("model_utility",),
    }.items()
    for name in names
}


def load(name: str) -> Metric:
    """
    Load a metric of this package. No network is needed.

    Args:
        name (`str`):
            `"probability"`, `"rouge_l_recall"`, `"truth_ratio"`, `"forget_quality"` or `"model_utility"`.

    Returns:
        [`~evaluate.Metric`]

    Raises:
        `ValueError`: If there is no such metric.
    """
    import evaluate

    # In memory, `evaluate` writes no files. So several processes cannot disturb each other.
    return evaluate.load(str(lookup(METRICS, name, "metric")), keep_in_memory=True)
