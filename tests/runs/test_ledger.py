"""The ledger says what was asked without its text, and shows where it was changed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from r2f_hf.runs.ledger import (
    append,
    first_break,
    read_ledger,
    row_hash,
    standing_requests,
    undo_entry,
    unlearn_entry,
    write_ledger,
)


ROWS = [["Where does Orla live?", "By the sea."], ["Where does Bram live?", "In the hills."]]


def request(before: str, after: str) -> dict[str, Any]:
    return unlearn_entry(ROWS, {"seed": 3}, {"steps": 2}, {"before": before, "after": after}, None)


@pytest.fixture
def entries() -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for entry in (request("a", "b"), request("b", "c"), undo_entry(2, {"before": "c", "after": "b"})):
        entries = append(entries, entry)
    return entries


def test_is_read_as_it_was_written(tmp_path: Path, entries: list[dict[str, Any]]) -> None:
    write_ledger(tmp_path, entries)
    assert read_ledger(tmp_path) == entries
    assert [entry["kind"] for entry in entries] == ["unlearn", "unlearn", "undo"]
    assert {"r2f_hf", "python", "torch", "transformers", "peft"} == entries[0]["versions"].keys()


def test_rows_are_salted_hashes(tmp_path: Path, entries: list[dict[str, Any]]) -> None:
    write_ledger(tmp_path, entries)
    assert not any(text in (tmp_path / "ledger.jsonl").read_text() for row in ROWS for text in row)
    one, two = entries[0]["request"], entries[1]["request"]
    assert len(one["rows"]) == 2
    # Whoever has the row can show that it was asked for; two requests do not look alike.
    assert row_hash(one["salt"], ROWS[1]) == one["rows"][1]
    assert not set(one["rows"]) & set(two["rows"])


def test_without_a_ledger(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no ledger\.jsonl"):
        read_ledger(tmp_path)
    (tmp_path / "ledger.jsonl").touch()
    with pytest.raises(ValueError, match="is empty"):
        read_ledger(tmp_path)


def test_every_changed_byte_is_found(tmp_path: Path, entries: list[dict[str, Any]]) -> None:
    write_ledger(tmp_path, entries)
    file = tmp_path / "ledger.jsonl"
    content = file.read_bytes()
    draw = random.Random(0)
    places = [place for place in range(len(content)) if content[place] != ord("\n")]
    for place in draw.sample(places, 300):
        file.write_bytes(content[:place] + bytes([content[place] ^ draw.randrange(1, 256)]) + content[place + 1 :])
        number = content[:place].count(b"\n") + 1
        with pytest.raises(ValueError, match=f"entry {number} is not what was written"):
            read_ledger(tmp_path)


@pytest.mark.parametrize(("kept", "number"), [([1, 2], 1), ([0, 2], 2), ([1, 0, 2], 1), ([0, 0, 1, 2], 2)])
def test_a_removed_or_moved_entry_is_found(
    kept: list[int], number: int, tmp_path: Path, entries: list[dict[str, Any]]
) -> None:
    write_ledger(tmp_path, [entries[index] for index in kept])
    with pytest.raises(ValueError, match=f"entry {number} does not follow"):
        read_ledger(tmp_path)


def test_an_entry_that_was_rewritten_with_a_right_digest_breaks_the_chain(
    tmp_path: Path, entries: list[dict[str, Any]]
) -> None:
    forged = {key: value for key, value in entries[0].items() if key not in ("digest", "previous")}
    entries[0] = append([], forged | {"recipe": {"seed": 4}})[0]
    write_ledger(tmp_path, entries)
    with pytest.raises(ValueError, match="entry 2 does not follow"):
        read_ledger(tmp_path)


def test_the_first_break_of_the_weights(entries: list[dict[str, Any]]) -> None:
    assert first_break(entries, "b") is None
    assert "not those that entry 3" in first_break(entries, "c")
    assert "between entries 3 and 4" in first_break(append(entries, request("x", "d")), "d")


def test_what_still_stands(entries: list[dict[str, Any]]) -> None:
    assert standing_requests(entries[:2]) == [1, 2]
    assert standing_requests(entries) == [1]
    entries = append(entries, request("b", "d"))
    assert standing_requests(entries) == [1, 4]


def test_entries_are_plain_json(entries: list[dict[str, Any]]) -> None:
    assert json.loads(json.dumps(entries)) == entries
