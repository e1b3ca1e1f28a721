"""A checkpoint counts only if every byte of it is what was written."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from r2f_hf.runs.checkpoints import CHECKSUMS_FILE, find_damage, last_whole_checkpoint, seal


def build(folder: Path) -> Path:
    (folder / "parts").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(random.Random(0).randbytes(3000))
    (folder / "parts" / "state.json").write_text('{"step": 3}')
    (folder / "empty").touch()
    seal(folder)
    return folder


def test_what_was_sealed_is_whole(tmp_path: Path) -> None:
    folder = build(tmp_path / "checkpoint-3")
    assert find_damage(folder) is None
    # Sealing again, after a file was added on purpose, is the same.
    (folder / "more").write_text("x")
    seal(folder)
    assert find_damage(folder) is None


def test_without_checksums_it_was_interrupted(tmp_path: Path) -> None:
    folder = build(tmp_path / "checkpoint-3")
    (folder / CHECKSUMS_FILE).unlink()
    assert "saving was interrupted" in find_damage(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "parts/state.json", CHECKSUMS_FILE])
def test_every_damage_is_found_and_its_place_named(name: str, tmp_path: Path) -> None:
    folder = build(tmp_path / "checkpoint-3")
    file = folder / name
    content = file.read_bytes()
    draw = random.Random(1)
    for _ in range(100):
        place = draw.randrange(len(content))
        changed = bytes([content[place] ^ draw.randrange(1, 256)])
        file.write_bytes(content[:place] + changed + content[place + 1 :])
        assert find_damage(folder), place
        file.write_bytes(content[:place])
        assert find_damage(folder), place
    file.write_bytes(content + b" ")
    assert name in find_damage(folder)
    file.write_bytes(content)
    assert find_damage(folder) is None
    if name != CHECKSUMS_FILE:
        file.unlink()
        assert find_damage(folder) == f"{name} is missing"


def test_the_latest_whole_one_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert last_whole_checkpoint(tmp_path) is None
    (tmp_path / "checkpoint-best").mkdir()
    for step in (2, 9, 10):
        build(tmp_path / f"checkpoint-{step}")
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    (tmp_path / "checkpoint-10" / "empty").write_text("not empty")
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-9"
    assert "checkpoint-10 is not used: empty is damaged" in caplog.text
    (tmp_path / "checkpoint-9" / CHECKSUMS_FILE).unlink()
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
