"""The script that changes one option of the recipe at a time, on a tiny model and a few rows."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


def test_each_option_has_a_table_and_a_line(
    tmp_path: Path, write_world: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    import trade_off

    # The tiny model has no room for more, and its rows have two wordings.
    monkeypatch.setattr(trade_off, "LASTING", trade_off.LASTING | {"rank": 8, "num_views": 1, "max_steps": 4})
    changes = {"steps": {steps: trade_off.shortened(steps) for steps in (2, 4)}}
    changes["retain_weight"] = {weight: {"retain_weight": weight, "max_steps": 4} for weight in (1.0, 30.0)}
    monkeypatch.setattr(trade_off, "CHANGES", changes)
    write_world(tmp_path / "worlds" / "quickstart-1-0")
    command = ["trade_off.py", "--setting", "quickstart-1", "--options", *changes, "--seeds", "0"]
    monkeypatch.setattr(sys, "argv", [*command, "--output_dir", str(tmp_path)])
    trade_off.main()

    made = json.loads((tmp_path / "report.json").read_text())
    assert {name: list(by_value) for name, by_value in made.items()} == {
        "steps": ["2", "4"],
        "retain_weight": ["1.0", "30.0"],
    }
    # Each value has a run of its own, and takes effect.
    runs = [run for by_value in made.values() for (run,) in by_value.values()]
    assert [run["steps"] for run in runs] == [2, 4, 4, 4]
    assert len({run["metrics"]["unlearned"]["forget_probability"] for run in runs}) == 4
    tables = (tmp_path / "tables.md").read_text()
    assert "| | steps=2 | steps=4 |" in tables and "| | retain_weight=1 | retain_weight=30 |" in tables
    picture = (tmp_path / "trade_off.svg").read_text()
    assert all(text in picture for text in ("retain_weight", "|PrivLeak|", "comeback (dotted: the targets)"))


def test_a_shorter_run_lifts_earlier() -> None:
    import trade_off

    lasting = trade_off.LASTING
    whole = trade_off.shortened(lasting["max_steps"])
    assert lasting | whole == lasting
    assert trade_off.shortened(20) == {"max_steps": 20, "forget_objective_kwargs": {"lift_after": 7}}
