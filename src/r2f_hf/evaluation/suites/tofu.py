"""TOFU (arXiv 2401.06121): questions about invented authors, and about what a model should keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ... import metrics
from ...scoring import generate_answers, score_completions
from .base import Rows, Statistics, Suite


# The splits that model utility is taken over, where a folder has them.
UTILITY_SPLITS = ("retain", "real_authors", "world_facts")


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


TOFU = Suite(
    # The names on the Hub (`locuslab/TOFU`).
    splits={
        "forget": "{forget}_perturbed",
        "retain": "retain_perturbed",
        "real_authors": "real_authors_perturbed",
        "world_facts": "world_facts_perturbed",
    },
    required=("forget", "retain"),
    columns=("question", "answer", "perturbed_answer"),
    check=check_texts,
    statistics=split_statistics,
    summarise=summarise,
    headline=(
        "forget_probability",
        "forget_paraphrase_probability",
        "retain_probability",
        "truth_ratio",
        "forget_quality",
        "model_utility",
    ),
)
