"""The ledger of a model folder: what the model was asked to forget, when and how, and which weights resulted."""

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
    The ledger's entry for one run.

    Args:
        rows (`Sequence[Sequence[str]]`):
            The texts of each forget row. Only their salted hashes are written, see [`row_hash`].
        recipe (`Mapping[str, Any]`):
            The settings of the run, seeds included.
        metrics (`Mapping[str, Any]`):
            What was measured before, during and after the run.
        weights (`Mapping[str, str]`):
            Hash of all weights `before` and `after` the run, see [`~r2f_hf.runs.weights.weights_hash`].
        undo (`Mapping[str, Any]`, *optional*):
            Where in the folder the weights from before the run are kept (`file`), and their size (`bytes`).

    Returns:
        `dict`: The entry, to be added with [`append`].
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
    The ledger's entry for the undoing of a run.

    Args:
        undoes (`int`):
            Number of the entry that is undone, counted from 1.
        weights (`Mapping[str, str]`):
            Hash of all weights `before` and `after` the undoing.
    """
    return {"kind": "undo", **_now(), "undoes": undoes, "weights": dict(weights)}


def _now() -> Entry:
    """The time, and the versions of the packages."""
    packages = {name: version(name) for name in ("torch", "transformers", "peft")}
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {"r2f_hf": version("r2f-hf"), "python": platform.python_version(), **packages},
    }


def row_hash(salt: str, row: Sequence[str]) -> str:
    """
    SHA-256 of a salt and a row's texts. Whoever has the row can show that it was in a request.

    The salt is different in each run, so that nobody can tell that two requests hold the same row. It does not protect
    a text that can be guessed.

    Args:
        salt (`str`):
            The entry's salt.
        row (`Sequence[str]`):
            The texts of the row: first the prompt, if there is one, and then the completion.
    """
    return hashlib.sha256(json.dumps([salt, *row]).encode()).hexdigest()


def append(entries: Sequence[Entry], entry: Entry) -> list[Entry]:
    """The entries and a new one, which is chained to the last one by its digest."""
    linked = entry | {"previous": entries[-1]["digest"] if entries else None}
    return [*entries, linked | {"digest": _digest(linked)}]


def _digest(entry: Entry) -> str:
    """SHA-256 of all of an entry except its own digest."""
    content = {key: value for key, value in entry.items() if key != "digest"}
    return hashlib.sha256(_line(content).encode()).hexdigest()


def _line(entry: Entry) -> str:
    """An entry as a line of the file."""
    return json.dumps(entry, sort_keys=True)


def write_ledger(folder: str | os.PathLike, entries: Sequence[Entry]) -> None:
    """Write the ledger of a folder, whole or not at all."""
    write_text(Path(folder) / LEDGER_FILE, "".join(_line(entry) + "\n" for entry in entries))


def read_ledger(folder: str | os.PathLike) -> list[Entry]:
    """
    Read the entries of a folder's ledger, oldest first, and check that none was changed.

    Args:
        folder (`str` or `os.PathLike`):
            A model folder.

    Raises:
        `FileNotFoundError`: If it has no ledger.
        `ValueError`: If an entry is damaged or missing. The message names the first such entry.
    """
    path = Path(folder) / LEDGER_FILE
    if not path.is_file():
        raise FileNotFoundError(f"There is no {LEDGER_FILE} in {os.fspath(folder)}: r2f has not made a model there.")
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
    Find the first place at which the weights are not those that the entry before it left.

    Args:
        entries (`Sequence[dict]`):
            Entries of [`read_ledger`], which has checked that they follow each other.
        weights (`str`):
            Hash of the model's weights now.

    Returns:
        `str`, *optional*: The break in words, or `None` if every change of the weights has an entry.
    """
    for number, (earlier, later) in enumerate(pairwise(entries), 1):
        if earlier["weights"]["after"] != later["weights"]["before"]:
            return f"the weights were changed by something else between entries {number} and {number + 1}"
    if entries[-1]["weights"]["after"] != weights:
        return f"the weights are not those that entry {len(entries)}, the last, has left"
    return None


def last_weights(folder: str | os.PathLike | None) -> str | None:
    """Hash of the weights that the ledger of a folder says it holds. `None` if there is no ledger."""
    if folder is None or not (Path(folder) / LEDGER_FILE).is_file():
        return None
    return read_ledger(folder)[-1]["weights"]["after"]


def standing_requests(entries: Sequence[Entry]) -> list[int]:
    """Numbers (from 1) of the runs that have not been undone, oldest first."""
    undone = {entry["undoes"] for entry in entries if entry["kind"] == "undo"}
    return [number for number, entry in enumerate(entries, 1) if entry["kind"] == "unlearn" and number not in undone]
