"""What a report needs in addition to the ledger."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from conftest import BuildTrainer
from transformers import PreTrainedModel

from r2f_hf.runs.details import DETAILS_FILE, Details


def test_details_come_back_as_they_were(tmp_path: Path) -> None:
    details = Details("r2f unlearn", "before", {"forget": "rows"}, {"forget": 2}, {"after": {"forget": [0.5, 1.0]}})
    details.write(tmp_path)
    assert Details.read(tmp_path) == details
    assert Details.read(tmp_path / "nothing") == Details()


def test_numbers_that_json_does_not_have_are_left_out(tmp_path: Path) -> None:
    Details(rows={"after": {"forget": [math.nan, 0.5]}}, fidelity=[[math.inf, 1.0]]).write(tmp_path)
    read = Details.read(tmp_path)
    assert read.rows["after"]["forget"] == [None, 0.5] and read.fidelity == [[None, 1.0]]


def test_a_run_leaves_its_details(
    build_trainer: BuildTrainer, memorised_model: PreTrainedModel, tmp_path: Path, forget_rows: list[dict[str, Any]]
) -> None:
    trainer = build_trainer(memorised_model)
    metrics = trainer.unlearn()
    details = Details.read(tmp_path / "output")
    assert details.set_sizes == {"forget": 6, "retain": 10} and not details.resumed
    assert len(details.modules) == 14 and [len(step) for step in details.fidelity] == [14, 14]
    mean = sum(map(sum, details.fidelity)) / 28
    assert mean == pytest.approx(metrics["train"]["fidelity"], abs=1e-4)
    for when in ("before", "after"):
        assert {name: len(rows) for name, rows in details.rows[when].items()} == details.set_sizes
        mean = sum(details.rows[when]["forget"]) / 6
        assert mean == pytest.approx(metrics[when]["eval_forget_probability"])
    assert details.cost["seconds"] > 0
    text = (tmp_path / "output" / DETAILS_FILE).read_text()
    assert not any(row["answer"] in text for row in forget_rows)
    assert json.loads(text)["schema"] == "r2f-details/1"


def test_a_resumed_run_keeps_what_was_before(
    build_trainer: BuildTrainer, memorised_model: PreTrainedModel, tmp_path: Path
) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1, "lr_scheduler_type": "constant"}
    trainer = build_trainer(memorised_model, max_steps=2, **settings)
    trainer.unlearn()
    first = Details.read(tmp_path / "output")
    # The result is what is loaded: its rows are not those from before the run.
    trainer = build_trainer(str(tmp_path / "output"), max_steps=3, **settings)
    trainer.unlearn(resume_from_checkpoint=True)
    second = Details.read(tmp_path / "output")
    assert second.resumed and second.rows["before"] == first.rows["before"] != second.rows["after"]
    assert second.fidelity[:2] == first.fidelity and len(second.fidelity) == 3
