"""From a user's datasets to checked rows: columns present, sets not empty, forget and retain apart."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError


Row = Mapping[str, Any]

_FILE_BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


def load_rows(source: str) -> Dataset:
    """
    Load rows from a file or from the Hub.

    Args:
        source (`str`):
            A `.json`, `.jsonl`, `.csv` or `.parquet` file, or a Hub dataset as `owner/name`, `owner/name:config` or
            `owner/name:config:split` (`split` defaults to `train`).

    Returns:
        [`~datasets.Dataset`]

    Raises:
        `FileNotFoundError`: If the source looks like a file that is not there.
        `ValueError`: If a file is empty or cannot be read.
    """
    path = Path(source)
    if path.suffix in _FILE_BUILDERS:
        if not path.is_file():
            raise FileNotFoundError(f"There is no data file {source}.")
        kind = _FILE_BUILDERS[path.suffix]
        try:
            # In memory alone: rows that are to be forgotten must not live on in a cache.
            with tempfile.TemporaryDirectory() as cache:
                return load_dataset(kind, data_files=str(path), split="train", cache_dir=cache, keep_in_memory=True)
        except (DatasetGenerationError, StopIteration, ValueError) as error:
            raise ValueError(f"The data file {source} is empty or is not {kind}.") from error
    name, config, split = [*source.split(":"), "", ""][:3]
    return load_dataset(name, config or None, split=split or "train")


def check_rows(rows: Sequence[Row] | Dataset | None, name: str, columns: Iterable[str | None]) -> None:
    """
    Refuse a set that is empty or lacks a column.

    Args:
        rows (`Dataset` or `Sequence[Mapping]`, *optional*):
            The rows.
        name (`str`):
            Which set it is, for the message.
        columns (`Iterable[str]`):
            Columns that have to be there; `None` entries are passed over.

    Raises:
        `ValueError`: If there are no rows, or a column is missing (the message names those present).
    """
    if rows is None or len(rows) == 0:
        raise ValueError(f"The {name} set is empty: there is nothing to take a gradient on. Pass at least one row.")
    for index, row in enumerate(rows):
        missing = [column for column in columns if column is not None and column not in row]
        if missing:
            where = f"The {name} set" if index == 0 else f"{name}[{index}]"
            raise ValueError(
                f"{where} has no column {missing[0]!r}; its columns are {', '.join(map(repr, row))}. Set "
                "`prompt_column`, `completion_column` or `views_column` to one of them."
            )


def check_overlap(
    first: Sequence[Row], second: Sequence[Row], columns: Sequence[str], names: tuple[str, str] = ("forget", "retain")
) -> None:
    """
    Refuse sets that share rows: the same text cannot be both forgotten and kept, nor known and unseen.

    Args:
        first (`Sequence[Mapping]`):
            Rows of the first set.
        second (`Sequence[Mapping]`):
            Rows of the second set.
        columns (`Sequence[str]`):
            Columns whose values make a row the same, letter case and surrounding white space aside.
        names (`tuple[str, str]`, *optional*, defaults to `("forget", "retain")`):
            Which sets they are, for the message.

    Raises:
        `ValueError`: Naming the pairs of rows by their indices (never by their text, which may have to stay private).
    """

    def key(row: Row) -> tuple[str, ...]:
        return tuple(str(row[column]).strip().casefold() for column in columns)

    where = {key(row): index for index, row in enumerate(second)}
    shared = [(index, where[key(row)]) for index, row in enumerate(first) if key(row) in where]
    if shared:
        pairs = ", ".join(f"{names[0]}[{f}] = {names[1]}[{r}]" for f, r in shared[:5])
        more = f" and {len(shared) - 5} more" if len(shared) > 5 else ""
        raise ValueError(
            f"The {names[0]} and {names[1]} sets share {len(shared)} rows: {pairs}{more}. Remove them from one."
        )


def content_hash(value: Any) -> str:
    """
    A short SHA-256 of anything that JSON can hold; of what it cannot, dates for one, by their text.

    Returns:
        `str`: 16 hexadecimal digits.
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
