"""The benchmark of larger requests, on a tiny model."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import larger_requests
from shared.lasting_worlds import RECIPES


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Run the benchmark as its command does."""
    monkeypatch.setattr(sys, "argv", ["larger_requests", *arguments])
    larger_requests.main()


def test_methods_stand_next_to_gold_and_are_read_again(
    tmp_path: Path, write_world: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_world(tmp_path / "worlds" / "quickstart-2-of-24-14-0")
    monkeypatch.setattr(larger_requests, "RATES", (1e-3, 4e-3))
    command = ("--people", "24", "--forget", "2", "--methods", "r2f", "lora", "--tuning_seed", "0")
    command += ("--set", "max_steps=2", "rank=8", "--output_dir", str(tmp_path))
    run(monkeypatch, *command)
    table, rates = json.loads((tmp_path / "report.json").read_text()).values()
    before, gold, r2f, lora = table.values()
    assert (before["comeback"], gold["comeback"], gold["forget quality"]) == ("1", "0", "1")
    assert r2f["steps"] == lora["steps"] == "2" and float(r2f["processor seconds"]) > 0
    assert float(r2f["P(forget)"]) < float(before["P(forget)"])
    # LoRA has the better one of its rates.
    assert len(rates) == 2 and lora["score"] == max((row["score"] for row in rates.values()), key=float)
    assert "| steps |  |  | 2 | 2 |" in (tmp_path / "tables.md").read_text()

    runs = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").glob("*/*.json")}
    assert len(runs) == 3
    run(monkeypatch, *command)
    assert runs == {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").glob("*/*.json")}


def test_a_larger_world_takes_four_passes_over_those_who_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(RECIPES / "quickstart"))
    import prepare

    monkeypatch.setattr(prepare, "SHAPE", prepare.SHAPE | {"hidden_size": 32, "num_hidden_layers": 1})
    options = argparse.Namespace(output_dir=tmp_path, set=[], epochs=1, utility_rows=16)
    world = larger_requests.Request(24, 2, options).world(0)
    # 20 rows of people and 8 per step.
    assert world.recipe.max_steps == 10
    assert {name: len(rows) for name, rows in world.rows.items()} == {"forget": 20, "retain": 260, "holdout": 40}
    assert len(world.splits["retain"]) <= 16 and len(world.splits["forget"]) == 20
    assert world.load("before").num_parameters() == world.load("gold").num_parameters()


def test_each_size_needs_both_numbers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "--people", "24", "--forget", "2", "3")
    assert "as many numbers after --forget" in capsys.readouterr().err
