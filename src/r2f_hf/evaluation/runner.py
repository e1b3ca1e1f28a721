"""Runs a suite on a model. The statistics of each split go into a file, which a later run can reuse."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.rendering import ChatOptions
from ..data.rows import content_hash
from ..lookup import lookup
from ..runs.weights import weights_hash
from .kept import kept
from .suites import SUITES
from .suites.base import Rows, Settings, Statistics
from .suites.registry import check_splits


# Rises when a suite computes other statistics than before, so that older files are not reused.
STATISTICS = 2


def run_suite(
    suite: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    splits: Mapping[str, Rows],
    output_dir: str | Path | None = None,
    gold: Mapping[str, Statistics] | None = None,
    batch_size: int = 16,
    max_new_tokens: int | None = None,
    options: ChatOptions | None = None,
    original: Mapping[str, Statistics] | None = None,
    max_length: int | None = None,
    gradnorm: bool = False,
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
        max_new_tokens (`int`, *optional*):
            Longest generated answer, in tokens. Defaults to what the suite takes: 64 for TOFU.
        options ([`ChatOptions`], *optional*):
            Arguments of the chat template, and a system prompt.
        original (`Mapping[str, dict]`, *optional*):
            Statistics of the model before unlearning, of the splits that are to be kept.
        max_length (`int`, *optional*):
            Tokens of an example. Longer texts are cut into windows. Defaults to what the model reads.
        gradnorm (`bool`, *optional*, defaults to `False`):
            Whether to run the membership attack by gradient norms too, which takes a backward pass per row.

    Returns:
        `tuple[dict[str, float], dict[str, dict]]`: The metrics, and the statistics of each split. These include the
        `seconds` that each part of a split took when it was computed.

    Raises:
        `ValueError`: If there is no such suite, if a split is empty or lacks a column, or if a row holds something
            other than text.
    """
    benchmark = lookup(SUITES, suite, "suite")
    check_splits(suite, splits)
    settings = Settings(batch_size, max_new_tokens, options, max_length, gradnorm)
    training, _ = model.training, model.eval()
    weights = weights_hash(model.state_dict())
    statistics = {}
    for split, rows in benchmark.prepare(splits).items():
        # The model's input depends on more than the rows, above all on the chat template.
        tokenizer_key = [type(tokenizer).__name__, len(tokenizer), tokenizer.chat_template, options]
        asked = [max_new_tokens, max_length, gradnorm]
        key = content_hash([STATISTICS, suite, weights, list(rows), tokenizer_key, asked])
        file = None if output_dir is None else Path(output_dir) / f"{split}.json"
        compute = partial(benchmark.statistics, model, tokenizer, split, rows, settings)
        statistics[split] = kept(file, key, compute)
    model.train(training)
    return benchmark.summarise(statistics, gold, original), statistics
