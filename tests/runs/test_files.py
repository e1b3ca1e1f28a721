"""Files that are whole or not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r2f_hf.runs.files import write_json, written_aside


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
    # The text is first written next to the destination. If this fails, the destination stays as it was.
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


def test_files_written_aside_arrive_together_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    # Files that a killed process has left.
    (folder / ".saving").mkdir(parents=True)
    (folder / ".saving" / "half").write_text("ha")
    with written_aside(folder) as aside:
        (aside / "config").write_text("new")
        (aside / "weights").write_text("new")
        assert not (folder / "config").exists()
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"config": "new", "weights": "new"}
    with pytest.raises(OSError, match="disk"), written_aside(folder) as aside:
        (aside / "config").write_text("newer")
        raise OSError("the disk is full")
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"config": "new", "weights": "new"}
