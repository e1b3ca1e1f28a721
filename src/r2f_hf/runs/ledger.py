"""The ledger of a model folder: what it was asked to forget, when and how, and which weights came of it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from .files import write_text


LEDGER_FILE = "ledger.jsonl"

Entry = dict[str, Any]


def unlearn_entry(
    rows: Sequence[Sequence[str]],
    recipe: Mapping[str, Any],
    metrics: Mapping[str, Any],
    weights: Mapping[str, str],
    undo: Mapping[str, Any] | None,
) -> Entry:
    """
    What the ledger says of one run.

    Args:
        rows (`Sequence[Sequence[str]]`):
            The texts of each forget row. They are written as salted hashes, see [`row_hash`].
        recipe (`Mapping[str, Any]`):
            The settings of the run, seeds included.
        metrics (`Mapping[str, Any]`):
            What was measured before, in and after it.
        weights (`Mapping[str, str]`):
            Hash of all weights `before` and `after`, see [`~r2f_hf.runs.weights.weights_hash`].
        undo (`Mapping[str, Any]`, *optional*):
            Where in the folder the weights from before are kept (`file`), and what they take (`bytes`).
    """
    salt = secrets.token_hex(16)
    return {
        "kind": "unlearn",
        **_now(),
        "request": {"salt": salt, "rows": [row_hash(salt, row) for row in rows]},
        "recipe": dict(recipe),
        "metrics": dict(metrics),
        "weights": dict(weights),
        "undo": None if undo is None else dict(undo),
    }


def undo_entry(undoes: int, weights: Mapping[str, str]) -> Entry:
    """
    What the ledger says of an undone run.

    Args:
        undoes (`int`):
            Number of the entry that is undone, from 1.
        weights (`Mapping[str, str]`):
            Hash of all weights `before` and `after`.
    """
    return {"kind": "undo", **_now(), "undoes": undoes, "weights": dict(weights)}


def _now() -> Entry:
    packages = {name: version(name) for name in ("torch", "transformers", "peft")}
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {"r2f_hf": version("r2f-hf"), "python": platform.python_version(), **packages},
    }


def row_hash(salt: str, row: Sequence[str]) -> str:
    """
    SHA-256 of a row's texts after a salt: whoever has the row can show that it was in a request.

    The salt, which is another in each run, keeps rows of different requests from being recognised as the same. It is
    no protection of a text that can be guessed.

    Args:
        salt (`str`):
            The entry's salt.
        row (`Sequence[str]`):
            The texts of the row, in the order prompt (where there is one), completion.
    """
    return hashlib.sha256(json.dumps([salt, *row]).encode()).hexdigest()


def append(entries: Sequence[Entry], entry: Entry) -> list[Entry]:
    """The entries with one more, chained to the last by its digest."""
    linked = entry | {"previous": entries[-1]["digest"] if entries else None}
    return [*entries, linked | {"digest": _digest(linked)}]


def _digest(entry: Entry) -> str:
    content = {key: value for key, value in entry.items() if key != "digest"}
    return hashlib.sha256(_line(content).encode()).hexdigest()


def _line(entry: Entry) -> str:
    return json.dumps(entry, sort_keys=True)


def write_ledger(folder: str | os.PathLike, entries: Sequence[Entry]) -> None:
    """Write a folder's ledger, whole or not at all."""
    write_text(Path(folder) / LEDGER_FILE, "".join(_line(entry) + "\n" for entry in entries))


def read_ledger(folder: str | os.PathLike) -> list[Entry]:
    """
    The entries of a folder's ledger, oldest first.

    Args:
        folder (`str` or `os.PathLike`):
            A model folder.

    Raises:
        `FileNotFoundError`: If it has no ledger.
        `ValueError`: If an entry is damaged or missing, naming the first.
    """
    path = Path(folder) / LEDGER_FILE
    if not path.is_file():
        raise FileNotFoundError(f"There is no {LEDGER_FILE} in {os.fspath(folder)}: r2f has made no model there.")
    entries: list[Entry] = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            entry = json.loads(line)
            intact = line.decode() == _line(entry) and entry["digest"] == _digest(entry)
        except (ValueError, KeyError, TypeError, AttributeError):
            intact = False
        if not intact:
            raise ValueError(f"{path}: entry {number} is not what was written: it was damaged or changed.")
        if entry["previous"] != (entries[-1]["digest"] if entries else None):
            raise ValueError(
                f"{path}: entry {number} does not follow the one before it: an entry was removed, added or replaced."
            )
        entries.append(entry)
    if not entries:
        raise ValueError(f"{path} is empty.")
    return entries


def first_break(entries: Sequence[Entry], weights: str) -> str | None:
    """
    The first place at which the weights are not those that the entry before has left.

    Args:
        entries (`Sequence[dict]`):
            Entries of [`read_ledger`], which has checked that they follow each other.
        weights (`str`):
            Hash of the model's weights now.

    Returns:
        `str`, *optional*: The break in words, or `None` if all are accounted for.
    """
    for number, (one, two) in enumerate(pairwise(entries), 1):
        if one["weights"]["after"] != two["weights"]["before"]:
            return f"the weights were changed by something else between entries {number} and {number + 1}"
    if entries[-1]["weights"]["after"] != weights:
        return f"the weights are not those that entry {len(entries)}, the last, has left"
    return None


def standing_requests(entries: Sequence[Entry]) -> list[int]:
    """Numbers (from 1) of the runs that have not been undone, oldest first."""
    undone = {entry["undoes"] for entry in entries if entry["kind"] == "undo"}
    return [n for n, entry in enumerate(entries, 1) if entry["kind"] == "unlearn" and n not in undone]
