"""What a suite is: named splits of rows, and a few functions over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...data.rendering import ChatOptions


Rows = Sequence[Mapping[str, Any]]
Statistics = dict[str, Any]


@dataclass(frozen=True)
class Suite:
    """
    A benchmark: the names of its data, and a few functions. [`run_suite`] does what is the same for all benchmarks.

    Args:
        splits (`Mapping[str, str]`):
            From the name of each split to its name on the Hub, which is also the name of its file in a local folder.
            `{forget}` stands for the name of the forget set.
        required (`tuple[str, ...]`):
            The splits that a local folder must have.
        columns (`tuple[str, ...]`):
            The columns that every row needs.
        check (`Callable[[Rows, str], None]`):
            Takes the rows and the name of a split, and raises a `ValueError` for rows that cannot be evaluated.
        statistics (`Callable`):
            From the model, its tokenizer, a split's name and rows, and the settings of `run_suite`, to statistics of
            each row that JSON can hold.
        summarise (`Callable`):
            From the statistics of each split, and those of a model that never saw the forget set (or `None`), to the
            metrics.
        headline (`tuple[str, ...]`):
            The metrics that a short table shows.
    """

    splits: Mapping[str, str]
    required: tuple[str, ...]
    columns: tuple[str, ...]
    check: Callable[[Rows, str], None]
    statistics: Callable[
        [PreTrainedModel, PreTrainedTokenizerBase, str, Rows, int, int, ChatOptions | None], Statistics
    ]
    summarise: Callable[[Mapping[str, Statistics], Mapping[str, Statistics] | None], dict[str, float]]
    headline: tuple[str, ...]
