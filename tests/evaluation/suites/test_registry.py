"""Suites are loaded from a folder of JSON-lines files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r2f_hf.evaluation.suites.registry import load_suite


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
