"""Runs a suite on a model; each split's statistics are in a file that a rerun picks up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.formatting import encode_example
from ..data.rows import check_rows, content_hash
from ..lookup import lookup
from ..runs.files import write_json
from ..runs.weights import weights_hash
from .suites import SUITES
from .suites.base import Rows, Statistics


def run_suite(
    suite: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    splits: Mapping[str, Rows],
    output_dir: str | Path | None = None,
    gold: Mapping[str, Statistics] | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 64,
) -> tuple[dict[str, float], dict[str, Statistics]]:
    """
    Evaluate a model on the splits of a suite.

    Args:
        suite (`str`):
            A name from [`SUITES`].
        model ([`~transformers.PreTrainedModel`]):
            The model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        splits (`Mapping[str, Dataset]`):
            Rows of the suite's splits, or of some of them, with the suite's columns.
        output_dir (`str` or `Path`, *optional*):
            Folder for the statistics of each split, one file each. A later run with the same weights, rows and
            settings reads them instead of computing them again. No text of the rows is written.
        gold (`Mapping[str, dict]`, *optional*):
            Statistics (the second result of this function) of a model that never saw the forget set.
        batch_size (`int`, *optional*, defaults to `16`):
            Rows in a batch.
        max_new_tokens (`int`, *optional*, defaults to `64`):
            Longest generated answer, in tokens.

    Returns:
        `tuple[dict[str, float], dict[str, dict]]`: The metrics, and the statistics of each split.

    Raises:
        `ValueError`: If there is no such suite, a split is empty or lacks a column, or a row holds something else than
            text.
    """
    found = lookup(SUITES, suite, "suite")
    for split, rows in splits.items():
        check_rows(rows, split, found.columns)
        found.check(rows, split)
    training, _ = model.training, model.eval()
    weights = weights_hash(model.state_dict())
    statistics = {}
    for split, rows in splits.items():
        # What the tokenizer makes of a row depends on more than the row, its chat template above all.
        encoded = [encode_example(tokenizer, row["question"], row["answer"]) for row in rows]
        key = content_hash([suite, weights, list(rows), encoded, max_new_tokens])
        file = None if output_dir is None else Path(output_dir) / f"{split}.json"
        known = json.loads(file.read_text()) if file is not None and file.is_file() else {}
        if known.get("key") != key:
            known = {"key": key, **found.statistics(model, tokenizer, split, rows, batch_size, max_new_tokens)}
            if file is not None and PartialState().is_main_process:
                write_json(file, known)
        statistics[split] = known
    model.train(training)
    return found.summarise(statistics, gold), statistics
