"""The levers that the package does not have, on a tiny model and a few rows."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.slow
def test_each_lever_changes_a_run_and_stands_in_the_table(
    tmp_path: Path, write_world: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    import levers
    from shared.levers import HardestViews

    # The tiny model has no room for more, and its rows have two wordings.
    small = {"rank": 8, "num_views": 1, "max_steps": 4, "forget_objective_kwargs": {"lift_after": 2}}
    monkeypatch.setitem(levers.R2F_RUNS, "r2f-ignorance", levers.R2F_RUNS["r2f-ignorance"] | small)
    taken, wanted = [], []
    step = HardestViews.training_step

    def watched(self, *args, **kwargs):
        # A step sees the model after simulated relearning, so this comes first.
        wanted.append(
            [[max(views, key=lambda view: self.completion_probabilities([view])[0])] for views in self.splits.forget]
        )
        loss = step(self, *args, **kwargs)
        taken.append(self.train_dataset.forget)
        return loss

    monkeypatch.setattr(HardestViews, "training_step", watched)
    # What the command registers is gone again for the other tests.
    monkeypatch.setitem(levers.FORGET_OBJECTIVES, "gated_ignorance", levers.GatedIgnorance)
    for name, lever in levers.LEVERS.items():
        monkeypatch.setitem(levers.RUNS, name, lever)
    write_world(tmp_path / "worlds" / "quickstart-1-0")
    command = ["levers.py", "--setting", "quickstart-1", "--seeds", "0", "--output_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    levers.main()

    made = json.loads((tmp_path / "report.json").read_text())
    assert list(made) == ["lasting", *levers.NAMES]
    probabilities = {name: run["metrics"]["unlearned"]["forget_probability"] for name, (run,) in made.items()}
    assert len(set(probabilities.values())) == len(made), probabilities
    assert taken == wanted and len(taken) == 4
    assert "| comeback | 0 |" in (tmp_path / "tables.md").read_text()
