"""Forget and retain metrics as `evaluate` modules, one file each; nothing here knows R2F or a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..lookup import lookup


if TYPE_CHECKING:
    from evaluate import Metric

# Each is one file, in the room of the question that it answers.
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
    Load one of the metrics that come with the package. No network is needed.

    Args:
        name (`str`):
            `"probability"`, `"rouge_l_recall"`, `"truth_ratio"`, `"forget_quality"` or `"model_utility"`.

    Returns:
        [`~evaluate.Metric`]

    Raises:
        `ValueError`: If there is no such metric.
    """
    import evaluate

    # Kept in memory: nothing is written, so that several processes cannot get into each other's way.
    return evaluate.load(str(lookup(METRICS, name, "metric")), keep_in_memory=True)
