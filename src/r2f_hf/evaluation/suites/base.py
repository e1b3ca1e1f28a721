"""What a suite is: named splits of rows, and a few functions over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...data.formatting import Encoded
from ...data.rendering import ChatOptions


Rows = Sequence[Mapping[str, Any]]
Statistics = dict[str, Any]
Statements = dict[str, list[Encoded]]


@dataclass(frozen=True)
class Settings:
    """
    How a model is asked.

    Args:
        batch_size (`int`, *optional*, defaults to `16`):
            Rows per forward pass.
        max_new_tokens (`int`, *optional*):
            Longest generated answer, in tokens. Defaults to what the suite takes.
        options ([`ChatOptions`], *optional*):
            Arguments of the chat template, and a system prompt.
        max_length (`int`, *optional*):
            Tokens of an example. Longer texts are cut into windows. Defaults to what the model reads.
        gradnorm (`bool`, *optional*, defaults to `False`):
            Whether to run the membership attack by gradient norms too, which takes a backward pass per row.
    """

    batch_size: int = 16
    max_new_tokens: int | None = None
    options: ChatOptions | None = None
    max_length: int | None = None
    gradnorm: bool = False

    def new_tokens(self, usual: int) -> int:
        """The longest generated answer, if the suite usually takes `usual` tokens."""
        return usual if self.max_new_tokens is None else self.max_new_tokens


class Remarks(NamedTuple):
    """
    What a reader of the metrics has to know.

    Args:
        notes (`list[str]`):
            Warnings, such as too few rows for a test.
        left_out (`dict[str, str]`):
            Metrics that are not there, and why.
    """

    notes: list[str]
    left_out: dict[str, str]


def as_they_are(splits: Mapping[str, Rows]) -> dict[str, Rows]:
    """The rows of each split, unchanged."""
    return dict(splits)


@dataclass(frozen=True)
class Suite:
    """
    A benchmark: the names of its data, and a few functions. [`run_suite`] does what is the same for all benchmarks.

    `summarise` and `remark` take three arguments: the statistics of each split; those of gold, a model that never saw
    the forget set; and those of the original model, before unlearning. The last two may be `None`.

    Args:
        hub (`str`, *optional*):
            The name of the data on the Hub. `None` if the user brings the data.
        forget (`str`, *optional*):
            The forget set that is taken if the user names none.
        splits (`Mapping[str, str]`):
            From the name of each split to its name on the Hub: `config`, or `config:split`. `{forget}` stands for the
            name of the forget set, and `{holdout}` for the same name with `holdout` in place of `forget`.
        required (`tuple[str, ...]`):
            The splits that a local folder must have.
        columns (`Mapping[str, tuple[str, ...]]`):
            The columns that the rows of each split need.
        check (`Callable[[Rows, str], None]`):
            Takes the rows and the name of a split, and raises a `ValueError` for rows that cannot be evaluated.
        statistics (`Callable`):
            From the model, its tokenizer, a split's name and rows, and the [`Settings`], to statistics of each row
            that JSON can hold. They contain no text.
        summarise (`Callable`):
            From the statistics to the metrics.
        remark (`Callable`):
            From the statistics to the [`Remarks`].
        headline (`tuple[str, ...]`):
            The metrics that a short table shows.
        gold (`tuple[str, ...]`, *optional*):
            The splits on which gold is evaluated.
        original (`tuple[str, ...]`, *optional*):
            The splits on which the original model is evaluated.
        prepare (`Callable`, *optional*):
            From the splits with the benchmark's columns to those that `statistics` takes.
        statements (`Callable`, *optional*):
            From the tokenizer, the splits, the model's context in tokens and the [`Settings`] to the encoded
            statements that [`run_depth`] takes: `forget`; the same with labels only at their `key_words`; `true` and
            `false` ones; and `unfamiliar` ones. A kind may have none.
        subject (`str`, *optional*):
            The column that says whom a row is about, if the name of a forget set is that of a person.
    """

    hub: str | None
    forget: str | None
    splits: Mapping[str, str]
    required: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]]
    check: Callable[[Rows, str], None]
    statistics: Callable[[PreTrainedModel, PreTrainedTokenizerBase, str, Rows, Settings], Statistics]
    summarise: Callable[..., dict[str, float]]
    remark: Callable[..., Remarks]
    headline: tuple[str, ...]
    gold: tuple[str, ...] = ()
    original: tuple[str, ...] = ()
    prepare: Callable[[Mapping[str, Rows]], dict[str, Rows]] = as_they_are
    statements: Callable[[PreTrainedTokenizerBase, Mapping[str, Rows], int, Settings], Statements] | None = None
    subject: str | None = None


def check_texts(rows: Rows, split: str, columns: Sequence[str]) -> None:
    """
    Refuse rows whose columns hold something other than text.

    Args:
        rows (`Sequence[Mapping]`):
            The rows of a split.
        split (`str`):
            Name of the split, for the message.
        columns (`Sequence[str]`):
            The columns that hold one text each.

    Raises:
        `ValueError`: For the first such row. The message names the row and the column, but not what it holds.
    """
    for index, row in enumerate(rows):
        for column in columns:
            if column in row and not is_text(row[column]):
                raise no_text(split, index, column)


def texts(value: str | Sequence[str]) -> list[str]:
    """The texts in a column that may hold one text or a list of them."""
    return [value] if isinstance(value, str) else list(value)


def is_text(value: Any) -> bool:
    """Whether a value is a text that is not empty."""
    return isinstance(value, str) and bool(value.strip())


def no_text(split: str, index: int, column: str) -> ValueError:
    """The error for a row without a text."""
    return ValueError(
        f"{split}[{index}] has no text in {column!r}, or something that is not text. Fill it in, or leave the row out."
    )
