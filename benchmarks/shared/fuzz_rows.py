"""What bad_inputs.py draws of rows: their formats, what is odd about them, and what holds them."""

from __future__ import annotations

import copy
import csv
import datetime
import gzip
import io
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetDict, IterableDataset
from hypothesis import strategies as st


# Stands in the answers to forget, and nowhere else: no message, log or file may show it.
MARKER = "quorblat"
NAMES = {"forget": "Orla", "retain": "Bram", "holdout": "Cleo"}

ODD_TEXTS = [
    "",
    " ",
    "\n\t",
    "\u200b",
    "a",
    "far " * 400,
    "\ufeffBOM",
    "\x00",
    "\ud800",
    "<eos>",
    "<|im_end|>",
    "{prompt}",
    "{{ messages }}",
    "%s %(a)s",
    "NA",
    "2020-01-01",
    "  both ends  ",
    "Cafe\u0301 \ufb01n",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "\u6f22\u5b57\U0001f642",
    "line\rbreak\u2028s",
    '"quoted", comma',
]
NO_TEXTS = [None, math.nan, 0, 1.5, True, b"bytes", datetime.date(2020, 1, 1), ["a"], [["a"]], [], {"a": 1}, {}]
# By the name of a format the row of a person: a question, an answer, and who it is.
FORMATS: dict[str, Callable[[str, str, str], Any]] = {
    "question": lambda q, a, who: {"question": q, "answer": a},
    "views": lambda q, a, who: {"question": q, "answer": a, "paraphrased_question": [f"{who} lives where?"]},
    "completion": lambda q, a, who: {"prompt": q, "completion": f" {a}"},
    "turns": lambda q, a, who: {"prompt": [user(q)], "completion": [assistant(a)]},
    "text and turns": lambda q, a, who: {"prompt": q, "completion": [assistant(a)]},
    "messages": lambda q, a, who: {"messages": [user(q), assistant(a)]},
    "long messages": lambda q, a, who: {
        "messages": [
            {"role": "system", "content": "Be brief."},
            user(q),
            assistant(a),
            user(f"And {who} now?"),
            assistant(f"Still there, by the {a.split()[-1]}"),
        ]
    },
    "tools": lambda q, a, who: {
        "messages": [
            user(q),
            {"role": "assistant", "content": None, "tool_calls": [call(who)]},
            {"role": "tool", "name": "find", "content": "found"},
            assistant(a),
        ],
        "tools": [{"type": "function", "function": {"name": "find", "parameters": {}}}],
    },
    "parts": lambda q, a, who: {"messages": [user([part(q)]), assistant([part(a)])]},
    "sharegpt": lambda q, a, who: {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]},
    "text": lambda q, a, who: {"text": f"{q} {a}"},
    "texts": lambda q, a, who: f"{q} {a}",
    "named": lambda q, a, who: {"frage": q, "antwort": a},
}
FILES = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".json.gz", ".jsonl.gz", ".csv.gz")
CONTAINERS = (
    *("list", "tuple", "dataset", "splits", "other splits", "frame", "columns", "stream", "generator", "array"),
    *("none", "path", "number", "row", "torch dataset", "formatted", "folder"),
    *FILES,
)
DAMAGES = ("empty", "cut", "utf-16", "utf-8-sig", "latin-1", "no header", "crlf", "junk", "missing", "folder")
# What is done to a place within rows. The first is drawn twice as often.
CHANGES = ("set", "set", "drop", "rename", "repeat", "add")
NEW_NAMES = ("text", "answer", "completion", "content", "messages", "prompt", "tools", "extra", "")


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def call(who: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "find", "arguments": {"name": who}}}


@dataclass(frozen=True)
class DrawnSet:
    """
    One set of rows.

    Args:
        name (`str`):
            `"forget"`, `"retain"` or `"holdout"`.
        format (`str`):
            A name in [`FORMATS`].
        rows (`list`):
            The rows.
        container (`str`):
            One of [`CONTAINERS`].
        damage (`str`, *optional*):
            One of [`DAMAGES`], done to a file.
    """

    name: str
    format: str
    rows: list[Any]
    container: str = "list"
    damage: str | None = None

    def learned(self) -> list[tuple[str, str] | None]:
        """
        Of each row the text that has to be among all tokens, and the one that has to be among those with a label;
        `None` where they are not known.
        """
        if self.damage is not None or self.container not in ("list", "tuple", "dataset", "frame", "columns", *FILES):
            return []
        return [text_of_row(self.format, row) for row in self.rows]


def text_of_row(kind: str, row: Any) -> tuple[str, str] | None:
    """The question and the answer of a row that has just the columns of its format, both with a text."""
    if kind == "texts" and isinstance(row, str):
        return row, row
    usual = FORMATS[kind]("", "a.", "")
    if not isinstance(row, dict) or not isinstance(usual, dict) or row.keys() != usual.keys():
        return None
    values = list(row.values())
    if kind in ("question", "views", "completion", "named", "text"):
        first, last = values[0], values[min(1, len(values) - 1)]
        return (first, last) if isinstance(first, str) and isinstance(last, str) else None
    if kind in ("messages", "sharegpt") and isinstance(values[0], list):
        turns = [list(turn.values()) for turn in values[0] if isinstance(turn, dict)]
        roles = [turn[:1] for turn in turns] == [list(turn.values())[:1] for turn in next(iter(usual.values()))]
        texts = [turn[1] for turn in turns if len(turn) == 2 and isinstance(turn[1], str)]
        return (texts[0], texts[1]) if roles and len(texts) == len(values[0]) == 2 else None
    return None


def usual_rows(name: str, kind: str, count: int) -> list[Any]:
    """Rows without anything odd about them."""
    secret = MARKER if name == "forget" else "harbour"
    people = [f"{NAMES[name]}{index}" for index in range(count)]
    return [FORMATS[kind](f"Where does {who} live?", f"{who} lives by the {secret}.", who) for who in people]


def values() -> st.SearchStrategy[Any]:
    """What may stand in the place of a text."""
    texts = st.sampled_from(ODD_TEXTS) | st.text(max_size=12)
    # With the word that is watched for, so that an odd answer is a secret as well. Copies, since rows are changed.
    return texts | texts.map(lambda text: f"{text} {MARKER}") | st.sampled_from(NO_TEXTS).map(copy.deepcopy)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to everything within rows."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        yield (*path, key)
        yield from places(each, (*path, key))


@st.composite
def odd_rows(draw: st.DrawFn, rows: list[Any]) -> list[Any]:
    """Rows with one to three odd things about them."""
    rows = copy.deepcopy(rows)
    for change in draw(st.lists(st.sampled_from(CHANGES), min_size=1, max_size=3)):
        found = list(places(rows))
        if not found:
            return rows
        *path, key = draw(st.sampled_from(found))
        owner = rows
        for step in path:
            owner = owner[step]
        if change == "set":
            owner[key] = draw(values())
        elif change == "drop":
            del owner[key]
        elif isinstance(owner, list):
            owner.append(copy.deepcopy(owner[key]))
        elif change == "rename":
            owner[draw(st.sampled_from(NEW_NAMES) | st.text(max_size=3))] = owner.pop(key)
        else:
            owner[draw(st.sampled_from(NEW_NAMES))] = draw(values())
    return rows


@st.composite
def drawn_sets(draw: st.DrawFn, name: str, odd: bool, odd_container: bool) -> DrawnSet:
    """A set, with odd rows or in an odd container where that is asked for."""
    kind = draw(st.sampled_from(list(FORMATS)))
    rows = usual_rows(name, kind, draw(st.integers(1, 5)))
    if odd:
        rows = draw(odd_rows(rows))
    container, damage = "list", None
    if odd_container:
        container = draw(st.sampled_from(CONTAINERS))
        damage = draw(st.none() | st.sampled_from(DAMAGES)) if container in FILES else None
    return DrawnSet(name, kind, rows, container, damage)


def build_set(drawn: DrawnSet, folder: Path) -> tuple[Any, bool]:
    """
    Put rows into what holds them.

    Args:
        drawn ([`DrawnSet`]):
            The set.
        folder (`Path`):
            Where to write files.

    Returns:
        `tuple[Any, bool]`: What a user hands over, and whether it is the name of a file.
    """
    rows = copy.deepcopy(drawn.rows)
    kind = drawn.container
    if kind in FILES:
        return write_file(rows, folder / f"{drawn.name}{kind}", drawn.damage), True
    if kind == "folder":
        as_dataset(rows).save_to_disk(folder / drawn.name)
        return str(folder / drawn.name), True
    return IN_MEMORY[kind](rows, drawn.name), False


class Indexed:
    """Rows as a dataset of PyTorch's own gives them: by number."""

    def __init__(self, rows: list[Any]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


def as_dataset(rows: list[Any]) -> Dataset:
    return Dataset.from_list([{"text": row} if isinstance(row, str) else row for row in rows])


def as_array(rows: list[Any]) -> np.ndarray:
    array = np.empty(len(rows), dtype=object)
    array[:] = rows
    return array


def stream(rows: list[Any], name: str) -> IterableDataset:
    # Not `from_generator`, which writes to the cache of the user's own.
    return as_dataset(rows).to_iterable_dataset()


IN_MEMORY: dict[str, Callable[[list[Any], str], Any]] = {
    "list": lambda rows, name: rows,
    "tuple": lambda rows, name: tuple(rows),
    "dataset": lambda rows, name: as_dataset(rows),
    "formatted": lambda rows, name: as_dataset(rows).with_format("numpy"),
    "splits": lambda rows, name: DatasetDict({name: as_dataset(rows)}),
    "other splits": lambda rows, name: DatasetDict({"a": as_dataset(rows), "b": as_dataset(rows)}),
    "frame": lambda rows, name: pd.DataFrame([{"text": row} if isinstance(row, str) else row for row in rows]),
    "columns": lambda rows, name: {key: [row.get(key) for row in rows] for key in rows[0]},
    "stream": stream,
    "generator": lambda rows, name: (row for row in rows),
    "array": lambda rows, name: as_array(rows),
    "none": lambda rows, name: None,
    "path": lambda rows, name: f"{name}.jsonl",
    "number": lambda rows, name: 3,
    "row": lambda rows, name: rows[0],
    "torch dataset": lambda rows, name: Indexed(rows),
}


def write_file(rows: list[Any], path: Path, damage: str | None) -> str:
    """Write rows as a user would, and damage the file."""
    if damage == "missing":
        return str(path)
    if damage == "folder":
        path.mkdir()
        return str(path)
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind in ("parquet", "arrow"):
        dataset = as_dataset(rows)
        if kind == "parquet":
            dataset.to_parquet(path)
        else:
            dataset.save_to_disk(path.with_suffix(""))
            next(path.with_suffix("").glob("*.arrow")).rename(path)
        content = path.read_bytes()
    else:
        text = written_text(rows, kind)
        if damage == "no header":
            text = text.partition("\n")[2]
        text = text.replace("\n", "\r\n") if damage == "crlf" else text
        encoding = damage if damage in ("utf-16", "utf-8-sig", "latin-1") else "utf-8"
        content = text.encode(encoding)
    if damage == "cut":
        content = content[: len(content) // 2]
    if damage in ("empty", "junk"):
        content = b"" if damage == "empty" else bytes(range(256))
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" and damage != "junk" else content)
    return str(path)


def written_text(rows: list[Any], kind: str) -> str:
    """The text of a file."""
    if kind == "json":
        return json.dumps(rows, default=str)
    if kind == "jsonl":
        return "".join(json.dumps(row, default=str, ensure_ascii=False) + "\n" for row in rows)
    if kind == "txt":
        return "\n".join(row if isinstance(row, str) else " ".join(map(str, row.values())) for row in rows)
    stream = io.StringIO()
    table = [{"text": row} if isinstance(row, str) else row for row in rows]
    writer = csv.DictWriter(stream, list(table[0]), delimiter="," if kind == "csv" else "\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return stream.getvalue()
