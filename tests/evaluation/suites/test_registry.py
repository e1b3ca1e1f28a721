"""Suites are loaded from a folder of JSON-lines files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r2f_hf.evaluation import SUITES, check_splits, load_suite


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local copy of TOFU without real authors and world facts."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "tofu"
    folder.mkdir()
    for name in ("forget01_perturbed", "forget05_perturbed", "retain_perturbed"):
        rows = [{"question": f"{name} {index}?", "answer": "Yes."} for index in range(3)]
        (folder / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("forget", ["forget01", "forget05"])
def test_a_folder_gives_the_splits_that_it_has(forget: str, folder: Path) -> None:
    splits = load_suite("tofu", str(folder), forget)
    assert splits.keys() == {"forget", "retain"}
    assert [row["question"] for row in splits["forget"]] == [f"{forget}_perturbed {index}?" for index in range(3)]
    (folder / "world_facts_perturbed.json").write_text('{"question": "Who?", "answer": "She."}\n')
    assert len(load_suite("tofu", str(folder), forget)["world_facts"]) == 1


def test_missing_files_are_named(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"The tofu suite needs .*forget10_perturbed\.json\."):
        load_suite("tofu", str(folder), "forget10")
    (folder / "retain_perturbed.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"forget10_perturbed\.json and .*retain_perturbed\.json"):
        load_suite("tofu", str(folder), "forget10")


def test_an_unknown_suite_is_answered_with_the_nearest_name(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"Unknown suite: 'tofuu'\. Did you mean 'tofu'"):
        load_suite("tofuu", str(folder))


def test_a_folder_that_lacks_a_split_says_what_it_has(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nearest that is there is forget01_perturbed\.json\. The folder has"):
        load_suite("tofu", str(folder), "forget1")
    with pytest.raises(FileNotFoundError, match=r"There is no folder \./nowhere"):
        load_suite("tofu", "./nowhere")


def test_the_holdout_set_is_named_after_the_forget_set(folder: Path) -> None:
    (folder / "holdout05.json").write_text('{"question": "Who?", "answer": "She."}\n')
    assert "holdout" not in load_suite("tofu", str(folder), "forget01")
    assert len(load_suite("tofu", str(folder), "forget05")["holdout"]) == 1
    # Its name says nothing about a holdout set.
    (folder / "mine_perturbed.json").write_text('{"question": "Who?", "answer": "She."}\n')
    (folder / "mine.json").write_text('{"question": "Who?", "answer": "She."}\n')
    assert load_suite("tofu", str(folder), "mine").keys() == {"forget", "retain"}


def test_an_unknown_split_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"Unknown split of the tofu suite: 'reatin'\. Did you mean 'retain'"):
        check_splits("tofu", {"reatin": [{"question": "Who?"}]})


def test_the_rows_of_users_have_no_folder() -> None:
    with pytest.raises(ValueError, match="Set `forget_data` and `retain_data`"):
        load_suite("own", "folder")


def test_every_suite_is_complete() -> None:
    for name, suite in SUITES.items():
        assert suite.columns.keys() == suite.splits.keys(), name
        assert {*suite.required, *suite.gold, *suite.original} <= suite.splits.keys(), name
