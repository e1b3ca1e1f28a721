"""The script that measures one run on its way, on a tiny model and a few rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest


def test_the_run_is_measured_from_its_deepest_point_to_its_end(
    tmp_path: Path, write_world: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    import on_the_way

    write_world(tmp_path / "worlds" / "quickstart-1-0")
    # The tiny model has no room for more, and its rows have two wordings.
    settings = {"rank": 8, "num_views": 1, "max_steps": 5, "forget_objective_kwargs": {"lift_after": 2}}
    command = ["--setting", "quickstart-1", "--seed", "0", "--every", "2", "--set", json.dumps(settings)]
    on_the_way.main([*command, "--output_dir", str(tmp_path)])
    rows = json.loads((tmp_path / "report.json").read_text())
    steps = [row["step"] for row in rows]
    # The holdout set may end the run before its last step.
    assert steps[0] == 2 and steps == sorted(set(steps)) and all(step in (2, 4) for step in steps[:-1])
    assert len({row["P(forget)"] for row in rows}) == len(rows)
    assert all(0 <= row["forget quality"] <= 1 for row in rows)
    assert f"step {steps[-1]}" in capsys.readouterr().out


def test_gold_is_like_itself_and_a_model_that_knows_is_not() -> None:
    import on_the_way

    unseen = [-2.0 - 0.1 * row for row in range(8)]
    gold = {"answer": unseen, "holdout": unseen, "retain": [-0.1], "paraphrase": unseen}
    gold["wrong"] = [[value, value - 0.5] for value in reversed(unseen)]
    same = on_the_way.line(0, gold, gold)
    assert same["PrivLeak"] == 0 and same["forget quality"] == 1
    assert same["mean of log R, less gold's"] == 0 and same["its standard deviation / gold's"] == 1
    knows = on_the_way.line(3, gold | {"answer": [-0.01] * 8, "paraphrase": [-0.3] * 8}, gold)
    assert knows["PrivLeak"] == -100 and knows["forget quality"] < 0.05
    assert knows["mean of log R, less gold's"] < -1 and knows["step"] == 3
