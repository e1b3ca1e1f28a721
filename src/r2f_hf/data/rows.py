"""From a user's datasets to checked rows: columns present, sets not empty, forget and retain apart."""

from __future__ import annotations

import hashlib
import json
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
            return load_dataset(kind, data_files=str(path), split="train")
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
    missing = [column for column in columns if column is not None and column not in rows[0]]
    if missing:
        raise ValueError(
            f"The {name} set has no column {missing[0]!r}; its columns are {', '.join(map(repr, rows[0]))}. Set "
            "`prompt_column`, `completion_column` or `views_column` to one of them."
        )


def check_overlap(forget: Sequence[Row], retain: Sequence[Row], columns: Sequence[str]) -> None:
    """
    Refuse forget and retain sets that share rows: the same text cannot be both forgotten and kept.

    Args:
        forget (`Sequence[Mapping]`):
            Forget rows.
        retain (`Sequence[Mapping]`):
            Retain rows.
        columns (`Sequence[str]`):
            Columns whose values make a row the same, letter case and surrounding white space aside.

    Raises:
        `ValueError`: Naming the pairs of rows by their indices (never by their text, which may have to stay private).
    """

    def key(row: Row) -> tuple[str, ...]:
        return tuple(str(row[column]).strip().casefold() for column in columns)

    where = {key(row): index for index, row in enumerate(retain)}
    shared = [(index, where[key(row)]) for index, row in enumerate(forget) if key(row) in where]
    if shared:
        pairs = ", ".join(f"forget[{f}] = retain[{r}]" for f, r in shared[:5])
        more = f" and {len(shared) - 5} more" if len(shared) > 5 else ""
        raise ValueError(f"The forget and retain sets share {len(shared)} rows: {pairs}{more}. Remove them from one.")


def content_hash(value: Any) -> str:
    """
    A short SHA-256 of anything that JSON can hold.

    Returns:
        `str`: 16 hexadecimal digits.
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
