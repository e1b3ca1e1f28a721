"""What a run costs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from r2f_hf.runs import cost
from r2f_hf.runs.cost import measured_cost


def test_seconds_and_memory_are_measured() -> None:
    with measured_cost() as measured:
        assert measured == {}
        block = torch.ones(2**24)
    assert 0 < measured["seconds"] < 60 and measured["device"]
    if not torch.cuda.is_available():
        assert measured["peak_memory_bytes"] >= block.numel() * 4


def test_the_counters_of_all_packages_are_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "POWERCAP", tmp_path)
    counters = [tmp_path / f"intel-rapl:{number}" / "energy_uj" for number in (0, 1)]
    # A part of a package counts in the package already.
    parts = tmp_path / "intel-rapl:0:0" / "energy_uj"
    for file in (*counters, parts):
        file.parent.mkdir()
        file.write_text("1000000\n")
    with measured_cost() as measured:
        for file in (*counters, parts):
            file.write_text("3500000\n")
    assert measured["energy_joules"]["cpu"] == 5
    # A counter that has begun anew says nothing, and so does a machine without any.
    with measured_cost() as measured:
        counters[0].write_text("0\n")
    assert "cpu" not in measured.get("energy_joules", {})
    monkeypatch.setattr(cost, "POWERCAP", tmp_path / "nothing")
    assert "cpu" not in cost.energy()
