"""Checked rows: columns present, sets not empty, forget and retain apart."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datasets import Dataset


Row = Mapping[str, Any]


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
                f"{where} has no column {missing[0]!r}; its columns are {column_names(row)}. Set "
                "`prompt_column`, `completion_column` or `views_column` to one of them."
            )


def check_overlap(first: Sequence[Sequence[str]], second: Sequence[Sequence[str]], names: tuple[str, str]) -> None:
    """
    Refuse sets that share rows: the same text cannot be both forgotten and kept, nor known and unseen.

    Args:
        first (`Sequence[Sequence[str]]`):
            The texts of each row of the first set.
        second (`Sequence[Sequence[str]]`):
            Those of the second set. Letter case, the form of Unicode and white space make no difference.
        names (`tuple[str, str]`):
            Which sets they are, for the message.

    Raises:
        `ValueError`: Naming the pairs of rows by their indices (never by their text, which may have to stay private).
    """
    where = {normal_form(texts): index for index, texts in enumerate(second)}
    forms = [normal_form(texts) for texts in first]
    shared = [(index, where[form]) for index, form in enumerate(forms) if form in where]
    if shared:
        pairs = ", ".join(f"{names[0]}[{f}] = {names[1]}[{r}]" for f, r in shared[:5])
        more = f" and {len(shared) - 5} more" if len(shared) > 5 else ""
        raise ValueError(
            f"The {names[0]} and {names[1]} sets share {len(shared)} rows: {pairs}{more}. Remove them from one."
        )


def is_unicode(value: Any) -> bool:
    """Whether all texts in a value are Unicode. Python's may hold half of a character, which no tokenizer takes."""
    if isinstance(value, str):
        return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, Mapping):
        return all(is_unicode(each) for pair in value.items() for each in pair)
    return not isinstance(value, list | tuple) or all(map(is_unicode, value))


def normal_form(texts: Sequence[str]) -> tuple[str, ...]:
    """The texts of a row without what does not make another row: case, Unicode form, and white space."""
    return tuple(" ".join(unicodedata.normalize("NFKC", text).casefold().split()) for text in texts)


def column_names(row: Row) -> str:
    """The columns of a row, for a message. A name that is no word may itself be a text to forget, and is not shown."""
    words = [repr(column) for column in row if str(column).isidentifier() or len(str(column).split()) == 1]
    others = len(row) - len(words)
    return ", ".join(words + [f"{others} with names of several words"] * bool(others))


def content_hash(value: Any) -> str:
    """
    A short SHA-256 of anything that JSON can hold; of what it cannot, dates for one, by their text.

    Returns:
        `str`: 16 hexadecimal digits.
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
