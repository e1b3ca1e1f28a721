"""What a suite is: named splits of rows, and a few functions over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase


Rows = Sequence[Mapping[str, Any]]
Statistics = dict[str, Any]


@dataclass(frozen=True)
class Suite:
    """
    A benchmark: data and a few functions. `run_suite` keeps what is the same for all.

    Args:
        splits (`Mapping[str, str]`):
            By name of the split its name on the Hub, which is also the name of its file in a local folder. `{forget}`
            stands for the forget set that is asked for.
        required (`tuple[str, ...]`):
            The splits that a local folder has to have.
        columns (`tuple[str, ...]`):
            The columns that every row needs.
        check (`Callable[[Rows, str], None]`):
            From the rows and the name of a split: refuses what cannot be evaluated.
        statistics (`Callable`):
            From `(model, tokenizer, split, rows, batch_size, max_new_tokens)` to statistics of each row, in JSON.
        summarise (`Callable`):
            From the statistics of each split, and those of a model that never saw the forget set, to metrics.
        headline (`tuple[str, ...]`):
            The metrics that a table shows.
    """

    splits: Mapping[str, str]
    required: tuple[str, ...]
    columns: tuple[str, ...]
    check: Callable[[Rows, str], None]
    statistics: Callable[[PreTrainedModel, PreTrainedTokenizerBase, str, Rows, int, int], Statistics]
    summarise: Callable[[Mapping[str, Statistics], Mapping[str, Statistics] | None], dict[str, float]]
    headline: tuple[str, ...]
