"""`r2f report`: the file that it writes, and the mistakes that it names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import write_rows
from transformers import PreTrainedModel

from r2f_hf import cli
from r2f_hf.report.questions import QUESTIONS
from r2f_hf.report.run import read_run


@pytest.fixture
def unlearned(build_trainer: Any, memorised_model: PreTrainedModel, tmp_path: Path) -> Path:
    """The output folder of a run."""
    build_trainer(memorised_model).unlearn()
    return tmp_path / "output"


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command, which has to fail, and returns its message."""

    def report(*argv: object) -> str:
        with pytest.raises(SystemExit, match="2"):
            cli.main(["report", *map(str, argv)])
        return capsys.readouterr().err

    return report


def test_the_report_is_written_and_its_path_is_told(
    unlearned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "reports" / "report.html"
    cli.main(["report", str(unlearned), "--out", str(out)])
    printed = capsys.readouterr().out
    assert printed.endswith(f"The report is {out}.\n")
    assert all(question in printed for question in QUESTIONS.values())
    assert "Does it last? Not measured.\nRun `r2f attack` on the model" in printed
    assert "The run was not started by <code>r2f unlearn</code>" in out.read_text(encoding="utf-8")


def test_texts_are_shown_only_if_they_are_those_of_the_request(
    unlearned: Path, tmp_path: Path, forget_rows: list[Any], retain_rows: list[Any], fails: Any
) -> None:
    out = tmp_path / "report.html"
    cli.main(["report", str(unlearned), "--out", str(out)])
    assert forget_rows[0]["answer"] not in out.read_text(encoding="utf-8")
    rows = write_rows(tmp_path / "rows" / "forget.jsonl", forget_rows)
    cli.main(["report", str(unlearned), "--out", str(out), "--with_text", rows])
    assert all(row["answer"] in out.read_text(encoding="utf-8") for row in forget_rows)
    others = write_rows(tmp_path / "rows" / "retain.jsonl", retain_rows)
    assert "are not those that" in fails(unlearned, "--out", out, "--with_text", others)
    assert "shows the rows of one run" in fails(unlearned, unlearned, "--with_text", rows)


def test_reports_of_other_weights_are_not_shown(unlearned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(unlearned.parent)
    weights = json.loads((unlearned / "ledger.jsonl").read_text())["weights"]["after"]
    report = {"schema": "r2f-evaluate/1", "model": "output", "weights": weights, "metrics": {}}
    (unlearned.parent / "evaluation").mkdir()
    for name, content in (("", report), ("old", report | {"weights": "another"}), ("foreign", {"schema": "x"})):
        (unlearned.parent / "evaluation" / name).mkdir(exist_ok=True)
        (unlearned.parent / "evaluation" / name / "report.json").write_text(json.dumps(content))
    shutil.copytree(unlearned.parent / "evaluation" / "old", unlearned / "old")
    # The folder that the model lies in names the same run.
    for folder in (unlearned, unlearned.parent):
        run = read_run(folder)
        assert run.evaluations == [report] and len(run.outdated) == 1


def test_mistakes_are_told_in_a_line(unlearned: Path, tmp_path: Path, fails: Any) -> None:
    assert "There is no ledger.jsonl in" in fails(tmp_path / "nothing")
    assert "is a folder. Name the file to write" in fails(unlearned, "--out", tmp_path)
    shutil.copytree(unlearned, tmp_path / "second")
    assert "There are several runs in" in fails(tmp_path)
    (unlearned / "trainer_state.json").write_text("{")
    assert "trainer_state.json is damaged" in fails(unlearned)


def test_an_undone_run_is_called_so(unlearned: Path, tmp_path: Path) -> None:
    weights = json.loads((unlearned / "ledger.jsonl").read_text())["weights"]
    cli.main(["undo", str(unlearned)])
    for place in ("after", "before"):
        report = {"schema": "r2f-evaluate/1", "model": None, "weights": weights[place], "place": place}
        (tmp_path / place).mkdir()
        (tmp_path / place / "report.json").write_text(json.dumps(report))
    # The figures of the run are those of its weights, and not of those that are there again.
    (evaluation,) = read_run(unlearned).evaluations
    assert evaluation["place"] == "after"
    shutil.rmtree(tmp_path / "after")
    out = tmp_path / "report.html"
    cli.main(["report", str(unlearned), "--out", str(out)])
    text = out.read_text(encoding="utf-8")
    assert "This request was undone" in text and "The run is undone already." in text
