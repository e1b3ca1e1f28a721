"""From a user's forget, retain and holdout sets to checked and encoded examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from datasets import Dataset

from .dataset import Encoded
from .encoder import ExampleEncoder
from .formatting import IGNORE_INDEX
from .rows import Row, check_overlap, check_rows


@dataclass
class Splits:
    """
    Encoded examples. Forget views and retain examples carry their number, `row`.

    Args:
        forget (`list[list[dict]]`):
            For each forget row its views, the original wording first.
        retain (`list[dict]`):
            The retain examples.
        holdout (`list[dict]`):
            The holdout examples.
    """

    forget: list[list[Encoded]]
    retain: list[Encoded]
    holdout: list[Encoded]

    @property
    def views(self) -> list[Encoded]:
        """All views of all forget rows."""
        return [view for views in self.forget for view in views]

    @property
    def originals(self) -> list[Encoded]:
        """The forget rows in their own wording."""
        return [views[0] for views in self.forget]

    @property
    def retain_sample(self) -> list[Encoded]:
        """As many retain examples as there are holdout examples, spread over the retain set."""
        if not self.holdout:
            return []
        return self.retain[:: max(1, len(self.retain) // len(self.holdout))][: len(self.holdout)]


def encode_splits(
    encoder: ExampleEncoder,
    forget: Dataset | Sequence[Row] | None,
    retain: Dataset | Sequence[Row] | None,
    holdout: Dataset | Sequence[Row] | None,
    needs_retain: bool,
) -> Splits:
    """
    Check and encode the sets.

    Args:
        encoder ([`ExampleEncoder`]):
            Encodes a row.
        forget (`Dataset` or `Sequence[Mapping]`):
            Rows to forget.
        retain (`Dataset` or `Sequence[Mapping]`, *optional*):
            Rows to keep.
        holdout (`Dataset` or `Sequence[Mapping]`, *optional*):
            Rows that the model never saw.
        needs_retain (`bool`):
            Whether there is a retain objective. Without one the retain set is not used.

    Raises:
        `ValueError`: If a set is empty, lacks a column, shares rows with another, or a row does not fit the model.
    """
    check_rows(forget, "forget", [*encoder.columns, encoder.views_column])
    if needs_retain:
        check_rows(retain, "retain", encoder.columns)
        check_overlap(forget, retain, encoder.columns)
    else:
        retain = []
    if holdout is not None:
        check_rows(holdout, "holdout", encoder.columns)
        # Rows that the model knows are no measure of not knowing.
        check_overlap(forget, holdout, encoder.columns, ("forget", "holdout"))
        check_overlap(retain, holdout, encoder.columns, ("retain", "holdout"))
    splits = Splits(
        [encoder.views(row, f"forget[{index}]") for index, row in enumerate(forget)],
        [encoder.original(row, f"retain[{index}]") for index, row in enumerate(retain)],
        [encoder.original(row, f"holdout[{index}]") for index, row in enumerate(holdout or [])],
    )
    for examples in (splits.views, splits.retain):
        for number, example in enumerate(examples):
            example["row"] = number
    return splits


def encode_evaluation(
    encoder: ExampleEncoder,
    rows: Dataset | Sequence[Row] | Mapping[str, Dataset | Sequence[Row]] | None,
    splits: Splits,
) -> dict[str, list[Encoded]] | list[Encoded]:
    """
    Encode what is evaluated: sets of the user's own, or the forget, retain and holdout sets where there are none.

    Raises:
        `ValueError`: As [`encode_splits`].
    """
    if rows is None:
        named = {"forget": splits.originals, "retain": splits.retain, "holdout": splits.holdout}
        return {name: examples for name, examples in named.items() if examples}
    if isinstance(rows, Mapping):
        return {name: encode_set(encoder, each, name) for name, each in rows.items()}
    return encode_set(encoder, rows, "evaluation")


def encode_set(encoder: ExampleEncoder, rows: Dataset | Sequence[Row], name: str) -> list[Encoded]:
    """Check and encode one set, each row in its own wording."""
    check_rows(rows, name, encoder.columns)
    return [encoder.original(row, f"{name}[{index}]") for index, row in enumerate(rows)]


def num_labels(example: Encoded) -> int:
    """Tokens of an example that are to be predicted."""
    return sum(label != IGNORE_INDEX for label in example["labels"][1:])


def by_length(examples: list[Encoded]) -> list[Encoded]:
    """Longest first: a batch that does not fit in memory shows at once."""
    return sorted(examples, key=lambda example: -len(example["input_ids"]))
