"""Metrics as the package loads them, and as a user loads their files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import evaluate
import pytest

from r2f_hf import metrics


@pytest.fixture(params=["package", "path"])
def compute(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Computes a metric by name."""

    def run(name: str, **inputs: Any) -> dict[str, Any]:
        if request.param == "package":
            return metrics.load(name).compute(**inputs)
        return evaluate.load(str(metrics.METRICS[name]), cache_dir=str(tmp_path)).compute(**inputs)

    return run
