"""Runs a suite on a model: scores, answers, metrics; each split's statistics in a file that a rerun picks up."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .. import metrics
from ..data.formatting import encode_example
from ..data.rows import check_rows, content_hash
from ..runs.files import write_json
from ..runs.weights import weights_hash
from ..scoring.completions import score_completions
from ..scoring.generation import generate_answers
from .suites.base import Rows
from .suites.tofu import UTILITY_SPLITS


Statistics = dict[str, Any]

# The metrics of a suite that a table shows.
HEADLINE = (
    "forget_probability",
    "forget_paraphrase_probability",
    "retain_probability",
    "truth_ratio",
    "forget_quality",
    "model_utility",
)


def run_suite(
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

    Rows have the columns `question`, `answer` and `perturbed_answer` (wrong answers: a text or a list of them), and
    where there is one `paraphrased_answer` and `paraphrased_question` (a text or a list of them). Without a
    paraphrased answer the truth ratio takes the answer itself, as TOFU does.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        splits (`Mapping[str, Dataset]`):
            Rows of `forget` and of any of `retain`, `real_authors`, `world_facts`.
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
        `tuple[dict[str, float], dict[str, dict]]`: The metrics (see [`summarise`]), and the statistics of each split.

    Raises:
        `ValueError`: If a split is empty or lacks a column, or a row holds something else than text.
    """
    for split, rows in splits.items():
        check_rows(rows, split, ["question", "answer", "perturbed_answer"])
        check_texts(rows, split)
    training, _ = model.training, model.eval()
    weights = weights_hash(model.state_dict())
    statistics = {}
    for split, rows in splits.items():
        # What the tokenizer makes of a row depends on more than the row, its chat template above all.
        encoded = [encode_example(tokenizer, row["question"], row["answer"]) for row in rows]
        key = content_hash([weights, list(rows), encoded, max_new_tokens])
        file = None if output_dir is None else Path(output_dir) / f"{split}.json"
        known = json.loads(file.read_text()) if file is not None and file.is_file() else {}
        if known.get("key") != key:
            known = {"key": key, **split_statistics(model, tokenizer, split, rows, batch_size, max_new_tokens)}
            if file is not None and PartialState().is_main_process:
                write_json(file, known)
        statistics[split] = known
    model.train(training)
    return summarise(statistics, gold), statistics


def texts(value: str | Sequence[str]) -> list[str]:
    """What a column holds that may have one text or several."""
    return [value] if isinstance(value, str) else list(value)


def check_texts(rows: Rows, split: str) -> None:
    """
    Refuse rows whose columns hold something else than text.

    Raises:
        `ValueError`: Naming the row and the column.
    """
    for index, row in enumerate(rows):
        for column in ("question", "answer", "perturbed_answer", "paraphrased_answer", "paraphrased_question"):
            # Without a paraphrased answer the answer itself is taken.
            if column not in row or (column == "paraphrased_answer" and row[column] in (None, "")):
                continue
            several = column in ("perturbed_answer", "paraphrased_question") and isinstance(row[column], list | tuple)
            found = row[column] if several else [row[column]]
            if not found or not all(isinstance(text, str) and text.strip() for text in found):
                raise ValueError(f"{split}[{index}] has no text in {column!r}, or something that is not text.")


def split_statistics(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    split: str,
    rows: Rows,
    batch_size: int,
    max_new_tokens: int,
) -> Statistics:
    """
    Per-row statistics of one split.

    Returns:
        `dict`: `answer` and `paraphrase` (mean log-probabilities per token), `wrong` (a list of them a row),
        `rouge_l_recall`, and `paraphrased_question` (the answer's, a list of them a row) where the rows have the
        column.
    """
    questions = [row["question"] for row in rows]
    answers = [row["answer"] for row in rows]

    # What is scored after what, a list a row.
    pairs = {
        "answer": [[(row["question"], row["answer"])] for row in rows],
        "paraphrase": [[(row["question"], row.get("paraphrased_answer") or row["answer"])] for row in rows],
        "wrong": [[(row["question"], wrong) for wrong in texts(row["perturbed_answer"])] for row in rows],
    }
    if "paraphrased_question" in rows[0]:
        pairs["paraphrased_question"] = [
            [(view, row["answer"]) for view in texts(row["paraphrased_question"])] for row in rows
        ]
    # In one call, which reads each question once, and each pair once.
    names = {
        pair: f"{split}[{index}]" for lists in pairs.values() for index, found in enumerate(lists) for pair in found
    }
    scores = score_completions(
        model, tokenizer, *zip(*names, strict=True), batch_size, f"{split}: answers", list(names.values())
    )
    known = dict(zip(names, scores.tolist(), strict=True))
    statistics: Statistics = {
        name: [[known[pair] for pair in found] for found in lists] for name, lists in pairs.items()
    }
    for name in ("answer", "paraphrase"):
        statistics[name] = [found[0] for found in statistics[name]]
    generated = generate_answers(
        model, tokenizer, questions, max_new_tokens, batch_size, f"{split}: generated answers"
    )
    rouge = metrics.load("rouge_l_recall").compute(predictions=generated, references=answers)
    return statistics | {"rouge_l_recall": rouge["rows"]}


def summarise(statistics: Mapping[str, Statistics], gold: Mapping[str, Statistics] | None = None) -> dict[str, float]:
    """
    The metrics of a suite from its splits' statistics, by the TOFU paper's definitions.

    Args:
        statistics (`Mapping[str, dict]`):
            Statistics of each split.
        gold (`Mapping[str, dict]`, *optional*):
            Those of a model that never saw the forget set.

    Returns:
        `dict[str, float]`: `<split>_probability`, `<split>_rouge_l_recall` and, but for forget, `<split>_truth_ratio`;
        `forget_paraphrase_probability`; `truth_ratio` (the forget set's, 1 is best); `forget_quality` where `gold` is
        given; `model_utility` over those of retain, real-authors and world-facts that there are.
    """
    load = {name: metrics.load(name) for name in metrics.METRICS}
    summary: dict[str, float] = {}
    ratios = {}
    for split, found in statistics.items():
        # TOFU asks its real-authors and world-facts rows as multiple choice.
        wrong = found["wrong"] if split in ("real_authors", "world_facts") else None
        probability = load["probability"].compute(predictions=found["answer"], wrong=wrong)
        ratios[split] = load["truth_ratio"].compute(predictions=found["paraphrase"], wrong=found["wrong"])
        summary[f"{split}_probability"] = probability["probability"]
        summary[f"{split}_rouge_l_recall"] = float(np.mean(found["rouge_l_recall"]))
        if split != "forget":
            summary[f"{split}_truth_ratio"] = ratios[split]["keep"]
        if "paraphrased_question" in found:
            views = [np.exp(row).mean() for row in found["paraphrased_question"]]
            summary[f"{split}_paraphrase_probability"] = float(np.mean(views))
    if "forget" in statistics:
        summary["truth_ratio"] = ratios["forget"]["forget"]
        if gold is not None:
            reference = load["truth_ratio"].compute(
                predictions=gold["forget"]["paraphrase"], wrong=gold["forget"]["wrong"]
            )
            quality = load["forget_quality"].compute(predictions=ratios["forget"]["rows"], gold=reference["rows"])
            summary["forget_quality"] = quality["forget_quality"]
    kept = [split for split in UTILITY_SPLITS if split in statistics]
    if kept:
        numbers = [
            summary[f"{split}_{name}"] for split in kept for name in ("probability", "rouge_l_recall", "truth_ratio")
        ]
        summary["model_utility"] = load["model_utility"].compute(predictions=numbers)["model_utility"]
    return summary
