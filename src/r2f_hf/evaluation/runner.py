"""Runs a suite on a model. The statistics of each split go into a file, which a later run can reuse."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.rendering import ChatOptions
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
    options: ChatOptions | None = None,
) -> tuple[dict[str, float], dict[str, Statistics]]:
    """
    Evaluate a model on the splits of a suite. On several processes, all of them have to call it.

    Args:
        suite (`str`):
            A name from [`SUITES`].
        model ([`~transformers.PreTrainedModel`]):
            The model, on its device. It is evaluated in evaluation mode and gets its own mode back.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        splits (`Mapping[str, Dataset]`):
            The rows of each split, with the suite's columns. Splits may be missing.
        output_dir (`str` or `Path`, *optional*):
            Folder for the statistics, with one file per split. A later run with the same weights, rows and settings
            reads them instead of computing them again. The text of the rows is not written.
        gold (`Mapping[str, dict]`, *optional*):
            Statistics of a model that never saw the forget set: the second result of this function for that model.
        batch_size (`int`, *optional*, defaults to `16`):
            Rows per forward pass.
        max_new_tokens (`int`, *optional*, defaults to `64`):
            Longest generated answer, in tokens.
        options ([`ChatOptions`], *optional*):
            Arguments of the chat template, and a system prompt.

    Returns:
        `tuple[dict[str, float], dict[str, dict]]`: The metrics, and the statistics of each split.

    Raises:
        `ValueError`: If there is no such suite, if a split is empty or lacks a column, or if a row holds something
            other than text.
    """
    benchmark = lookup(SUITES, suite, "suite")
    for split, rows in splits.items():
        check_rows(rows, split, benchmark.columns)
        benchmark.check(rows, split)
    training, _ = model.training, model.eval()
    weights = weights_hash(model.state_dict())
    statistics = {}
    for split, rows in splits.items():
        # The model's input depends on more than the rows, above all on the chat template.
        tokenizer_key = [type(tokenizer).__name__, len(tokenizer), tokenizer.chat_template, options]
        key = content_hash([suite, weights, list(rows), tokenizer_key, max_new_tokens])
        file = None if output_dir is None else Path(output_dir) / f"{split}.json"
        known = json.loads(file.read_text()) if file is not None and file.is_file() else {}
        if known.get("key") != key:
            computed = benchmark.statistics(model, tokenizer, split, rows, batch_size, max_new_tokens, options)
            known = {"key": key, **computed}
            if file is not None and PartialState().is_main_process:
                write_json(file, known)
        statistics[split] = known
    model.train(training)
    return benchmark.summarise(statistics, gold), statistics
