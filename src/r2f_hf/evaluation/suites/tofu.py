"""TOFU (arXiv 2401.06121): questions about invented authors, and about what a model should still know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ... import metrics
from ...data.rendering import ChatOptions
from ...scoring import generate_answers, score_completions
from .base import Rows, Statistics, Suite


# Model utility is taken over these splits, as far as they are there.
UTILITY_SPLITS = ("retain", "real_authors", "world_facts")


def texts(value: str | Sequence[str]) -> list[str]:
    """The texts in a column that may hold one text or a list of them."""
    return [value] if isinstance(value, str) else list(value)


def check_texts(rows: Rows, split: str) -> None:
    """
    Refuse rows whose columns hold something other than text.

    Args:
        rows (`Sequence[Mapping]`):
            The rows of a split.
        split (`str`):
            Name of the split, for the message.

    Raises:
        `ValueError`: For the first such row. The message names the row and the column, but not what it holds.
    """
    for index, row in enumerate(rows):
        for column in ("question", "answer", "perturbed_answer", "paraphrased_answer", "paraphrased_question"):
            # An empty paraphrased answer is no mistake: the answer itself is used in its place.
            if column not in row or (column == "paraphrased_answer" and row[column] in (None, "")):
                continue
            several = column in ("perturbed_answer", "paraphrased_question") and isinstance(row[column], list | tuple)
            values = row[column] if several else [row[column]]
            if not values or not all(isinstance(text, str) and text.strip() for text in values):
                raise ValueError(
                    f"{split}[{index}] has no text in {column!r}, or something that is not text. Fill it in, or leave "
                    "the row out."
                )


def split_statistics(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    split: str,
    rows: Rows,
    batch_size: int,
    max_new_tokens: int,
    options: ChatOptions | None = None,
) -> Statistics:
    """
    Compute the statistics of each row of one split.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model, in evaluation mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        split (`str`):
            Name of the split, for messages and progress bars.
        rows (`Sequence[Mapping]`):
            The rows, with the columns `question`, `answer` and `perturbed_answer` and, optionally,
            `paraphrased_answer` and `paraphrased_question`.
        batch_size (`int`):
            Rows per forward pass.
        max_new_tokens (`int`):
            Longest generated answer, in tokens.
        options ([`ChatOptions`], *optional*):
            Arguments of the chat template, and a system prompt.

    Returns:
        `dict`: Lists with one entry per row. Log-probabilities are means per token (natural logarithm).

        - `answer` (`list[float]`): the log-probability of the answer;
        - `paraphrase` (`list[float]`): the log-probability of the paraphrased answer;
        - `wrong` (`list[list[float]]`): the log-probability of each wrong answer;
        - `paraphrased_question` (`list[list[float]]`), if the rows have that column: the log-probability of the answer
          after each paraphrase of the question;
        - `rouge_l_recall` (`list[float]`): how much of the answer a generated one contains, from 0 to 1.
    """
    questions = [row["question"] for row in rows]
    answers = [row["answer"] for row in rows]

    # The pairs of a question and an answer to score: a list per row.
    pairs = {
        "answer": [[(row["question"], row["answer"])] for row in rows],
        "paraphrase": [[(row["question"], row.get("paraphrased_answer") or row["answer"])] for row in rows],
        "wrong": [[(row["question"], wrong) for wrong in texts(row["perturbed_answer"])] for row in rows],
    }
    if "paraphrased_question" in rows[0]:
        pairs["paraphrased_question"] = [
            [(view, row["answer"]) for view in texts(row["paraphrased_question"])] for row in rows
        ]
    # A dictionary, so that a pair that occurs several times is scored once. One call scores all, so that rows with the
    # same question share its reading.
    names = {
        pair: f"{split}[{index}]"
        for lists in pairs.values()
        for index, row_pairs in enumerate(lists)
        for pair in row_pairs
    }
    scores = score_completions(
        model, tokenizer, *zip(*names, strict=True), batch_size, f"{split}: answers", list(names.values()), options
    )
    score_of = dict(zip(names, scores.tolist(), strict=True))
    statistics: Statistics = {
        name: [[score_of[pair] for pair in row_pairs] for row_pairs in lists] for name, lists in pairs.items()
    }
    for name in ("answer", "paraphrase"):
        # A row has one answer and one paraphrase of it: no list is needed.
        statistics[name] = [row_scores[0] for row_scores in statistics[name]]
    generated = generate_answers(
        model, tokenizer, questions, max_new_tokens, batch_size, f"{split}: generated answers", options
    )
    rouge = metrics.load("rouge").compute(predictions=generated, references=answers)
    return statistics | {"rouge_l_recall": rouge["rows"]["rougeL_recall"]}


def summarise(statistics: Mapping[str, Statistics], gold: Mapping[str, Statistics] | None = None) -> dict[str, float]:
    """
    Compute TOFU's metrics from the statistics of its splits, by the definitions of the paper (arXiv 2401.06121).

    Args:
        statistics (`Mapping[str, dict]`):
            [`split_statistics`] of each split.
        gold (`Mapping[str, dict]`, *optional*):
            The same for a model that never saw the forget set. Only its `"forget"` split is used.

    Returns:
        `dict[str, float]`: The metrics by name.

        - `<split>_probability` and `<split>_rouge_l_recall` of each split;
        - `<split>_paraphrase_probability` of each split with paraphrased questions;
        - `<split>_truth_ratio` of each split but forget: from 0 to 1, 1 is best;
        - `truth_ratio` of the forget set: from 0 to 1, 1 is best;
        - `forget_quality`, if `gold` is given and has more than one row: a p-value;
        - `model_utility` over retain, real-authors and world-facts, as far as they are there.
    """
    used = ("probability", "truth_ratio", "forget_quality", "model_utility")
    load = {name: metrics.load(name) for name in used}
    summary: dict[str, float] = {}
    ratios = {}
    for split, of_rows in statistics.items():
        # TOFU treats its real-authors and world-facts rows as multiple choice.
        wrong = of_rows["wrong"] if split in ("real_authors", "world_facts") else None
        probability = load["probability"].compute(predictions=of_rows["answer"], wrong=wrong)
        ratios[split] = load["truth_ratio"].compute(predictions=of_rows["paraphrase"], wrong=of_rows["wrong"])
        summary[f"{split}_probability"] = probability["probability"]
        summary[f"{split}_rouge_l_recall"] = float(np.mean(of_rows["rouge_l_recall"]))
        if split != "forget":
            summary[f"{split}_truth_ratio"] = ratios[split]["true_better"]
        if "paraphrased_question" in of_rows:
            views = [np.exp(row).mean() for row in of_rows["paraphrased_question"]]
            summary[f"{split}_paraphrase_probability"] = float(np.mean(views))
    if "forget" in statistics:
        summary["truth_ratio"] = ratios["forget"]["closer_to_1_better"]
        if gold is not None:
            reference = load["truth_ratio"].compute(
                predictions=gold["forget"]["paraphrase"], wrong=gold["forget"]["wrong"]
            )
            # One row says nothing about a distribution.
            if min(len(ratios["forget"]["rows"]), len(reference["rows"])) > 1:
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
