"""From whatever holds rows (datasets, tables, lists, streams) to a sequence of rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from datasets import Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict


Rows = Dataset | Sequence[Mapping[str, Any]]

# Rows that are taken from a stream at most: all of a set is encoded before the first step.
MOST_STREAMED = 100_000


def as_rows(value: Any, name: str) -> Rows | None:
    """
    The rows of a set, whatever holds them.

    Args:
        value (`Any`):
            A [`~datasets.Dataset`]; a [`~datasets.DatasetDict`] with one split, or with one of the set's own name, or
            `train`; an iterable dataset or a generator, of which at most 100,000 rows are taken; a pandas DataFrame; a
            dictionary of columns; a list of rows, or of texts.
        name (`str`):
            Which set it is: `"forget"`, `"retain"` and so on.

    Returns:
        `Dataset` or `Sequence[Mapping]`, *optional*: `None` for `None`.

    Raises:
        `ValueError`: If it holds something else; the message names its type and what to do, and never shows a text.
    """
    if value is None:
        return None
    if isinstance(value, DatasetDict | IterableDatasetDict):
        chosen = [split for split in (name, "train") if split in value] or list(value)
        if len(value) > 1 and chosen[0] not in (name, "train"):
            raise ValueError(
                f"The {name} set is a {type(value).__name__} with the splits {', '.join(map(repr, value))}. Pass one "
                f"of them, for example `dataset[{chosen[0]!r}]`."
            )
        return as_rows(value[chosen[0]], name)
    if isinstance(value, Dataset):
        if value.format["type"] == "custom":
            # A transform of the user's, which makes the rows.
            return as_rows(list(value), name)
        # As Python's own values, whatever a user has formatted it for.
        value = value.with_format(None)
        return [without_arrow_keys(row) for row in value] if has_structs(value.features) else value
    if type(value).__name__ == "DataFrame" and hasattr(value, "to_dict"):
        if not value.columns.is_unique:
            raise ValueError(f"The {name} set is a DataFrame with two columns of the same name. Rename one.")
        if any(isinstance(each, list | dict) for column in value for each in value[column]):
            # Arrow would give each message the keys of all others.
            return value.astype(object).where(value.notna(), None).to_dict("records")
        try:
            return Dataset.from_pandas(value, preserve_index=False)
        except (ValueError, TypeError, NotImplementedError, OverflowError):
            # A column with values of several kinds, which Arrow does not hold. It would quote one of them.
            return value.to_dict("records")
    if isinstance(value, Mapping):
        if not all(isinstance(column, Sequence) and not isinstance(column, str) for column in value.values()):
            raise ValueError(
                f"The {name} set is a dictionary whose values are not columns. Pass a list of rows, or a dictionary "
                "of lists of one length."
            )
        lengths = {name: len(column) for name, column in value.items()}
        if len(set(lengths.values())) > 1:
            found = ", ".join(map(str, lengths.values()))
            raise ValueError(
                f"The {name} set is a dictionary of columns of different lengths ({found}). Each row needs a value in "
                "each of them."
            )
        # Not through Arrow: a column may hold values of several kinds, of which an error is to name the row.
        return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError(
            f"The {name} set is a {type(value).__name__}, not rows. Pass a Dataset or a list of dictionaries; a file "
            "or a dataset of the Hub is read by `r2f_hf.data.loading.load_rows`."
        )
    streamed = isinstance(value, IterableDataset) or not isinstance(value, Sequence)
    rows = list(islice(value, MOST_STREAMED + 1)) if streamed else value
    if isinstance(value, IterableDataset):
        rows = [without_arrow_keys(row) for row in rows]
    if streamed and len(rows) > MOST_STREAMED:
        raise ValueError(
            f"The {name} set is streamed and has more than {MOST_STREAMED:,} rows, all of which would be held in "
            f"memory. Pass fewer, for example `dataset.take({MOST_STREAMED})`."
        )
    if rows and all(isinstance(row, str) for row in rows):
        return [{"text": row} for row in rows]
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ValueError(
                f"{name}[{index}] is a {type(row).__name__}, not a row. Pass a list of dictionaries, one per row, or "
                "a list of texts."
            )
    return rows


def has_structs(feature: Any) -> bool:
    """Whether a column of a dataset holds dictionaries, such as messages."""
    inner = getattr(feature, "feature", None)
    if inner is None and isinstance(feature, list):
        inner = feature[0]
    if isinstance(feature, Features):
        return any(isinstance(column, dict) or has_structs(column) for column in feature.values())
    return isinstance(inner, dict) or (inner is not None and has_structs(inner))


def without_arrow_keys(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose messages and tools have none of the keys that Arrow gave them, with `None`, because others do."""
    return {column: _filled(value) for column, value in row.items()}


def _filled(value: Any) -> Any:
    if isinstance(value, Mapping):
        # A message that calls a tool has no content, and says so.
        kept = {"content"} if "role" in value else set()
        return {key: _filled(each) for key, each in value.items() if each is not None or key in kept}
    return [_filled(each) for each in value] if isinstance(value, list) else value
