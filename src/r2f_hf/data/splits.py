"""From a user's forget, retain and holdout sets to checked and encoded examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datasets import DatasetDict

from .containers import Rows, as_rows
from .encoder import ExampleEncoder
from .formats import RowFormat
from .formatting import IGNORE_INDEX, Encoded
from .rows import check_overlap


@dataclass
class Splits:
    """
    Encoded examples. Each carries the number of the row that it is of, `item`: a long text is several examples, its
    windows, and one item. Forget views and retain examples also carry a number of their own, `row`.

    Args:
        forget (`list[list[dict]]`):
            For each forget example its views, the original wording first.
        retain (`list[dict]`):
            The retain examples.
        holdout (`list[dict]`):
            The holdout examples.
        texts (`dict[str, list[list[str]]]`):
            The texts of each row, by set.
        rows (`Dataset` or `Sequence[Mapping]`):
            The rows of the forget set.
        row_format ([`RowFormat`]):
            Their format.
    """

    forget: list[list[Encoded]]
    retain: list[Encoded]
    holdout: list[Encoded]
    texts: dict[str, list[list[str]]]
    rows: Rows
    row_format: RowFormat

    @property
    def views(self) -> list[Encoded]:
        """All views of all forget examples."""
        return [view for views in self.forget for view in views]

    @property
    def second(self) -> list[Encoded]:
        """The second answers to all views of all forget examples, if there are any."""
        return [second for view in self.views for second in view.get("second", [])]

    @property
    def originals(self) -> list[Encoded]:
        """The forget examples in their own wording."""
        return [views[0] for views in self.forget]

    @property
    def retain_sample(self) -> list[Encoded]:
        """As many retain examples as there are holdout examples, spread over the retain set."""
        if not self.holdout:
            return []
        return self.retain[:: max(1, len(self.retain) // len(self.holdout))][: len(self.holdout)]


def encode_splits(encoder: ExampleEncoder, forget: Any, retain: Any, holdout: Any, needs_retain: bool) -> Splits:
    """
    Check and encode the sets, each in the format that its columns tell.

    Args:
        encoder ([`ExampleEncoder`]):
            Encodes a row.
        forget (`Any`):
            Rows to forget, in any container that [`~r2f_hf.data.containers.as_rows`] takes.
        retain (`Any`, *optional*):
            Rows to keep.
        holdout (`Any`, *optional*):
            Rows that the model never saw.
        needs_retain (`bool`):
            Whether there is a retain objective. Without one the retain set is not used.

    Raises:
        `ValueError`: If a set is empty or has no known format, shares rows with another, or holds a row that does not
            fit the model.
    """
    sets = {"forget": as_rows(forget, "forget")}
    sets["retain"] = as_rows(retain, "retain") if needs_retain else None
    sets["holdout"] = as_rows(holdout, "holdout")
    formats, texts = {}, {}
    for name, rows in sets.items():
        if name == "forget" or rows is not None or (name == "retain" and needs_retain):
            formats[name] = encoder.format_of(rows, name, views=name == "forget")
            texts[name] = [formats[name].texts(row) for row in rows]
    if encoder.views_column is not None:
        # A part of what describes a run.
        texts["views"] = [[str(row[encoder.views_column])] for row in sets["forget"]]
    # Rows that are forgotten cannot be kept, and rows that the model knows are no measure of not knowing.
    for first, second in (("forget", "retain"), ("forget", "holdout"), ("retain", "holdout")):
        if first in texts and second in texts:
            check_overlap(texts[first], texts[second], (first, second))
    examples: list[list[Encoded]] = []
    for index, row in enumerate(sets["forget"]):
        found = encoder.views(row, formats["forget"], f"forget[{index}]")
        examples += [[view | {"item": index} for view in views] for views in found]
    others = {
        name: _encode_rows(encoder, sets[name], formats[name], name) if name in formats else []
        for name in ("retain", "holdout")
    }
    splits = Splits(examples, others["retain"], others["holdout"], texts, sets["forget"], formats["forget"])
    for numbered in (splits.views, splits.retain):
        for number, example in enumerate(numbered):
            example["row"] = number
    return splits


def encode_evaluation(encoder: ExampleEncoder, rows: Any, splits: Splits) -> dict[str, list[Encoded]] | list[Encoded]:
    """
    Encode what is evaluated: sets of the user's own, or the forget, retain and holdout sets where there are none.

    Raises:
        `ValueError`: As [`encode_splits`].
    """
    if rows is None:
        named = {"forget": splits.originals, "retain": splits.retain, "holdout": splits.holdout}
        return {name: examples for name, examples in named.items() if examples}
    if isinstance(rows, DatasetDict) or (isinstance(rows, dict) and holds_sets(rows)):
        return {name: encode_set(encoder, each, name) for name, each in rows.items()}
    return encode_set(encoder, rows, "evaluation")


def holds_sets(rows: Mapping[str, Any]) -> bool:
    """Whether the values of a dictionary are sets, and not the columns of one."""
    return not all(
        isinstance(value, list) and not isinstance(next(iter(value), None), Mapping) for value in rows.values()
    )


def encode_set(encoder: ExampleEncoder, rows: Any, name: str) -> list[Encoded]:
    """Check and encode one set, each row in its own wording."""
    rows = as_rows(rows, name)
    return _encode_rows(encoder, rows, encoder.format_of(rows, name), name)


def _encode_rows(encoder: ExampleEncoder, rows: Rows, row_format: RowFormat, name: str) -> list[Encoded]:
    return [
        window | {"item": index}
        for index, row in enumerate(rows)
        for window in encoder.windows(row, row_format, f"{name}[{index}]")
    ]


def num_labels(example: Encoded) -> int:
    """Tokens of an example that are to be predicted."""
    return sum(label != IGNORE_INDEX for label in example["labels"][1:])


def by_length(examples: list[Encoded]) -> list[Encoded]:
    """Longest first: a batch that does not fit in memory shows at once."""
    return sorted(examples, key=lambda example: -len(example["input_ids"]))
