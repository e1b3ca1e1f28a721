"""From a file, a folder or the Hub to rows, with every text as it stands in the file."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError

from .containers import Rows, as_rows


def load_rows(source: str, name: str = "data") -> Rows:
    """
    Load rows from a file, a folder or the Hub.

    Texts stay what they are: a date, a number or `NA` in a text file is read as text, and nothing is written to a
    cache, in which rows that are to be forgotten would live on.

    Args:
        source (`str`):
            A `.json`, `.jsonl`, `.csv`, `.tsv`, `.txt`, `.parquet` or `.arrow` file (letter case does not matter; text
            files may be gzipped, `.gz`); a folder of [`~datasets.Dataset.save_to_disk`]; or a Hub dataset as
            `owner/name`, `owner/name:config` or `owner/name:config:split` (`split` defaults to `train`). A `.txt` file
            is one document; JSON may be a list of rows, of texts, or one row per line.
        name (`str`, *optional*, defaults to `"data"`):
            Which set it is: chooses a split where a folder has several.

    Returns:
        [`~datasets.Dataset`], or a list of rows where a column of a JSON file has values of several kinds.

    Raises:
        `FileNotFoundError`: If the source looks like a file that is not there.
        `ValueError`: If a file is empty, cannot be read or is of another kind; the message never shows its text.
    """
    path = Path(source)
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    gzipped = suffixes[-1:] == [".gz"]
    kind = (suffixes[:-1] if gzipped else suffixes)[-1:]
    read = _READERS.get(kind[0]) if kind else None
    if read is not None and not (gzipped and kind[0] in _BINARY):
        if not path.is_file():
            raise FileNotFoundError(f"There is no data file {source}.")
        try:
            rows = read(path, gzipped)
        except (ValueError, OSError, EOFError, StopIteration, DatasetGenerationError):
            rows = None
        if rows is None or len(rows) == 0:
            # Without the cause: parsers quote the text that they stumble over.
            raise ValueError(f"The data file {source} is empty or is not {kind[0].removeprefix('.')}.")
        return rows
    if path.is_dir():
        try:
            saved = load_from_disk(source, keep_in_memory=True)
        except FileNotFoundError as error:
            raise ValueError(
                f"The folder {source} was not written by `Dataset.save_to_disk`. Name one file of {_kinds()}."
            ) from error
        return as_rows(saved, name) if isinstance(saved, DatasetDict) else saved
    if path.is_file():
        raise ValueError(f"The data file {source} is of a kind that is not read. Files are {_kinds()}.")
    dataset, config, split = [*source.split(":"), "", ""][:3]
    return load_dataset(dataset, config or None, split=split or "train")


def _kinds() -> str:
    *first, last = _READERS
    return f"{', '.join(first)} or {last}, text files also with .gz"


def _read_text(path: Path, gzipped: bool) -> str:
    with gzip.open(path, "rb") if gzipped else open(path, "rb") as file:
        return file.read().decode("utf-8-sig")


def _read_json(path: Path, gzipped: bool) -> Rows | None:
    text = _read_text(path, gzipped)
    # Numbers stay as they are written, leading and trailing zeros included.
    parse: Callable[[str], Any] = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str).decode
    try:
        rows = parse(text)
    except json.JSONDecodeError:
        rows = [parse(line) for line in text.splitlines() if line.strip()]
    if isinstance(rows, dict) and all(map(_is_column, rows.values())):
        return as_rows(rows, path.name)
    rows = [rows] if isinstance(rows, dict) else rows
    if not isinstance(rows, list) or not rows:
        return None
    # A row may lack a column that others have.
    rows = [{"text": row} if isinstance(row, str) else row for row in rows]
    if not all(isinstance(row, dict) for row in rows):
        return None
    try:
        return Dataset.from_list(rows)
    except (ValueError, TypeError, NotImplementedError, OverflowError):
        # A column with values of several kinds, which Arrow does not hold. The check of the rows names the row.
        return rows


def _is_column(value: Any) -> bool:
    """Whether a value of a JSON object is a column of a set, and not a text or the messages of one row."""
    return isinstance(value, list) and not any(isinstance(each, dict) for each in value)


def _read_table(separator: str) -> Callable[[Path, bool], Dataset]:
    def read(path: Path, gzipped: bool) -> Dataset:
        compression = "gzip" if gzipped else None
        table = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, compression=compression)
        return Dataset.from_pandas(table, preserve_index=False)

    return read


def _read_document(path: Path, gzipped: bool) -> Dataset | None:
    text = _read_text(path, gzipped)
    return Dataset.from_dict({"text": [text]}) if text.strip() else None


def _read_binary(builder: str) -> Callable[[Path, bool], Dataset]:
    def read(path: Path, gzipped: bool) -> Dataset:
        with tempfile.TemporaryDirectory() as cache:
            return load_dataset(builder, data_files=str(path), split="train", cache_dir=cache, keep_in_memory=True)

    return read


_READERS: dict[str, Callable[[Path, bool], Rows | None]] = {
    ".json": _read_json,
    ".jsonl": _read_json,
    ".csv": _read_table(","),
    ".tsv": _read_table("\t"),
    ".txt": _read_document,
    ".parquet": _read_binary("parquet"),
    ".arrow": _read_binary("arrow"),
}
_BINARY = (".parquet", ".arrow")
