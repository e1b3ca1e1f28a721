"""JSON files that are whole or not there, and tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r2f_hf.report import print_table, write_json


def test_json_is_written_into_new_folders_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "report.json"
    for content in ({"forget": 0.5, "rows": [1, 2]}, {"forget": 0.25}):
        write_json(path, content)
        assert json.loads(path.read_text()) == content
    assert [file.name for file in path.parent.iterdir()] == ["report.json"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), object()])
def test_what_json_cannot_hold_leaves_the_old_file(bad: object, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_json(path, {"forget": 0.5})
    with pytest.raises((ValueError, TypeError)):
        write_json(path, {"forget": bad})
    assert json.loads(path.read_text()) == {"forget": 0.5}
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


def test_a_write_that_fails_midway_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_json(path, {"forget": 0.5})
    # The text goes beside the destination first: if it cannot be written there, the destination is as it was.
    (tmp_path / "report.json.tmp").mkdir()
    with pytest.raises(OSError):
        write_json(path, {"forget": 0.25})
    assert json.loads(path.read_text()) == {"forget": 0.5}


def test_a_reader_of_the_old_file_still_sees_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_json(path, {"forget": 0.5})
    with path.open() as reader:
        write_json(path, {"forget": 0.25})
        assert json.load(reader) == {"forget": 0.5}
    assert json.loads(path.read_text()) == {"forget": 0.25}


def test_table_shows_the_columns_asked_for_and_leaves_gaps(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {"before": {"forget_probability": 0.98765, "secret": 7.0}, "after": {"model_utility": 0.5}}
    print_table("Unlearning", rows, ["forget_probability", "model_utility"])
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("Unlearning", "forget probability", "model utility", "before", "after"))
    assert "0.988" in printed and "0.5" in printed
    assert "secret" not in printed and "None" not in printed


def test_a_wide_table_is_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    columns = [f"a_rather_long_column_{index}" for index in range(9)]
    rows = {f"run {index}": dict.fromkeys(columns, 0.12345) for index in range(12)}
    print_table("Wide", rows, columns)
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert all(column.replace("_", " ") in printed for column in columns)
    assert printed.count("0.123") == 9 * 12
