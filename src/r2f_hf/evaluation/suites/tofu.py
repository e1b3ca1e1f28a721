"""TOFU (arXiv 2401.06121): questions about invented authors, and about what a model should still know."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ... import metrics
from ...data.formatting import Encoded, encode_example
from ...scoring import generate_answers, score_completions
from .audit import (
    answer_statistics,
    at_key_words,
    check_key_words,
    few_for_quality,
    few_rows,
    forget_quality,
    joined,
    mean,
    membership,
    memorisation,
    memorisation_score,
    remark_on_membership,
    truth_ratio,
)
from .base import Remarks, Rows, Settings, Statements, Statistics, Suite, is_text, no_text, texts


# Model utility is taken over these splits, as far as they are there.
UTILITY_SPLITS = ("retain", "real_authors", "world_facts")
ROUGE = {"rouge1_recall": "rouge_1_recall", "rougeL_recall": "rouge_l_recall", "rougeL_f1": "rouge_l_f1"}


def check(rows: Rows, split: str) -> None:
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
            if not values or not all(map(is_text, values)):
                raise no_text(split, index, column)
    check_key_words(rows, split)


def split_statistics(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, split: str, rows: Rows, settings: Settings
) -> Statistics:
    """
    Compute the statistics of each row of one split.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model, in evaluation mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        split (`str`):
            Name of the split. `"forget"` also gets what the audit needs, and `"holdout"` nothing else.
        rows (`Sequence[Mapping]`):
            The rows, with the columns `question` and `answer`. All splits but `"holdout"` also need
            `perturbed_answer`, and may have `paraphrased_answer` and `paraphrased_question`.
        settings ([`Settings`]):
            How the model is asked.

    Returns:
        `dict`: Lists with one entry per row. Log-probabilities are means per token (natural logarithm).

        - `answer` (`list[float]`): the log-probability of the answer;
        - `paraphrase` (`list[float]`): the log-probability of the paraphrased answer;
        - `wrong` (`list[list[float]]`): the log-probability of each wrong answer;
        - `paraphrased_question` (`list[list[float]]`), if the rows have that column: the log-probability of the answer
          after each paraphrase of the question;
        - `rouge_l_recall`, `rouge_l_f1`, `rouge_1_recall` (`list[float]`): how much of the answer a generated one
          contains, from 0 to 1.

        For `"forget"` and `"holdout"` also [`answer_statistics`].
    """
    if split == "holdout":
        return _audit(model, tokenizer, split, rows, settings)
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
    # What the audit reads token by token needs no second reading.
    audit = _audit(model, tokenizer, split, rows, settings) if split == "forget" else {}
    known = {pair: -loss for (pair,), loss in zip(pairs["answer"], audit.get("loss", ()), strict=False)}
    # A dictionary, so that a pair that occurs several times is scored once. One call scores all, so that rows with the
    # same question share its reading.
    names = {
        pair: f"{split}[{index}]"
        for lists in pairs.values()
        for index, row_pairs in enumerate(lists)
        for pair in row_pairs
        if pair not in known
    }
    scores = score_completions(
        model,
        tokenizer,
        *zip(*names, strict=True),
        settings.batch_size,
        f"{split}: answers",
        list(names.values()),
        settings.options,
    )
    score_of = known | dict(zip(names, scores.tolist(), strict=True))
    statistics: Statistics = {
        name: [[score_of[pair] for pair in row_pairs] for row_pairs in lists] for name, lists in pairs.items()
    }
    for name in ("answer", "paraphrase"):
        # A row has one answer and one paraphrase of it: no list is needed.
        statistics[name] = [row_scores[0] for row_scores in statistics[name]]
    generated = generate_answers(
        model,
        tokenizer,
        questions,
        settings.new_tokens(64),
        settings.batch_size,
        f"{split}: generated answers",
        settings.options,
    )
    rouge = metrics.load("rouge").compute(predictions=generated, references=answers)["rows"]
    statistics |= {ours: rouge[name] for name, ours in ROUGE.items()}
    return statistics | audit


def _audit(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, split: str, rows: Rows, settings: Settings
) -> Statistics:
    examples = [[example] for example in _encoded(tokenizer, rows, split, settings)]
    return answer_statistics(model, tokenizer, examples, split, settings)


def _encoded(tokenizer: PreTrainedTokenizerBase, rows: Rows, split: str, settings: Settings) -> list[Encoded]:
    return [
        encode_example(tokenizer, row["question"], row["answer"], None, settings.options, f"{split}[{index}]")
        for index, row in enumerate(rows)
    ]


def statements(
    tokenizer: PreTrainedTokenizerBase, splits: Mapping[str, Rows], context: int, settings: Settings
) -> Statements:
    """
    Encode the statements by which [`run_depth`] looks into a model.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.
        splits (`Mapping[str, Sequence[Mapping]]`):
            The rows of each split. True and false statements are the answers and the first wrong answers of
            `"retain"`, and unfamiliar ones the answers of `"holdout"`.
        context (`int`):
            Not used.
        settings ([`Settings`]):
            How the model is asked.

    Returns:
        `dict[str, list[dict]]`: The encoded statements of each kind.
    """
    forget, retain, holdout = (splits.get(name, ()) for name in ("forget", "retain", "holdout"))
    wrong = [row | {"answer": texts(row["perturbed_answer"])[0]} for row in retain]
    forgotten = _encoded(tokenizer, forget, "forget", settings)
    return {
        "forget": forgotten,
        "key_words": at_key_words(tokenizer, forgotten, forget),
        "true": _encoded(tokenizer, retain, "retain", settings),
        "false": _encoded(tokenizer, wrong, "retain", settings),
        "unfamiliar": _encoded(tokenizer, holdout, "holdout", settings),
    }


def summarise(
    statistics: Mapping[str, Statistics],
    gold: Mapping[str, Statistics] | None = None,
    original: Mapping[str, Statistics] | None = None,
) -> dict[str, float]:
    """
    Compute TOFU's metrics from the statistics of its splits, by the definitions of the paper (arXiv 2401.06121), and
    the audit's.

    Args:
        statistics (`Mapping[str, dict]`):
            [`split_statistics`] of each split.
        gold (`Mapping[str, dict]`, *optional*):
            The same for a model that never saw the forget set. Only its splits `"forget"` and `"holdout"` are used.
        original (`Mapping[str, dict]`, *optional*):
            The same for the model before unlearning. Only its utility is used.

    Returns:
        `dict[str, float]`: The metrics by name.

        - `<split>_probability` and `<split>_rouge_l_recall` of each split;
        - `<split>_paraphrase_probability` of each split with paraphrased questions;
        - `<split>_truth_ratio` of each split but forget: from 0 to 1, 1 is best;
        - `truth_ratio` of the forget set: from 0 to 1, 1 is best;
        - `forget_quality`, if `gold` is given and has more than one row: a p-value;
        - `model_utility` over retain, real-authors and world-facts, as far as they are there;
        - `forget_rouge_1_recall`, `forget_rouge_l_f1`, `forget_exact_memorisation`, `forget_extraction_strength` and
          `memorisation_score`;
        - with a holdout split, the metrics of [`membership`];
        - `overall_score`, with a holdout split, `gold` and `original`.
    """
    load = {name: metrics.load(name) for name in ("probability", "model_utility")}
    summary: dict[str, float] = {}
    ratios = {}
    for split, of_rows in statistics.items():
        if split == "holdout":
            continue
        # TOFU treats its real-authors and world-facts rows as multiple choice.
        wrong = of_rows["wrong"] if split in ("real_authors", "world_facts") else None
        probability = load["probability"].compute(predictions=of_rows["answer"], wrong=wrong)
        ratios[split] = truth_ratio(of_rows)
        summary[f"{split}_probability"] = probability["probability"]
        summary[f"{split}_rouge_l_recall"] = mean(of_rows["rouge_l_recall"])
        if split != "forget":
            summary[f"{split}_truth_ratio"] = ratios[split]["true_better"]
        if "paraphrased_question" in of_rows:
            views = [np.exp(row).mean() for row in of_rows["paraphrased_question"]]
            summary[f"{split}_paraphrase_probability"] = mean(views)
    if "forget" in statistics:
        summary["truth_ratio"] = ratios["forget"]["closer_to_1_better"]
        if gold is not None:
            summary |= forget_quality(statistics["forget"], gold["forget"])
    # Statistics of older versions lack what the audit needs.
    if "exact_memorisation" in statistics.get("forget", {}):
        summary |= _memorisation(statistics["forget"])
    summary |= membership(statistics, gold)
    kept = [split for split in UTILITY_SPLITS if split in statistics]
    if kept:
        numbers = [
            summary[f"{split}_{name}"] for split in kept for name in ("probability", "rouge_l_recall", "truth_ratio")
        ]
        summary["model_utility"] = load["model_utility"].compute(predictions=numbers)["model_utility"]
    if original is not None and {"memorisation_score", "privacy_score", "model_utility"} <= summary.keys():
        before = summarise({split: original[split] for split in kept})["model_utility"]
        relative = min(summary["model_utility"] / before, 1) if before else 0.0
        three = [summary["memorisation_score"], summary["privacy_score"], relative]
        summary["overall_score"] = metrics.load("overall_score").compute(predictions=three)["overall_score"]
    return summary


def _memorisation(forget: Statistics) -> dict[str, float]:
    """What the audit says about the forget rows alone."""
    found = {f"forget_{name}": mean(forget[name]) for name in ("rouge_1_recall", "rouge_l_f1")}
    found |= memorisation("forget", forget)
    return found | memorisation_score(found, forget)


def remark(
    statistics: Mapping[str, Statistics],
    gold: Mapping[str, Statistics] | None = None,
    original: Mapping[str, Statistics] | None = None,
) -> Remarks:
    """
    Say what is left out, and which figures rest on few rows.

    Args:
        statistics (`Mapping[str, dict]`):
            [`split_statistics`] of each split.
        gold (`Mapping[str, dict]`, *optional*):
            The same for a model that never saw the forget set.
        original (`Mapping[str, dict]`, *optional*):
            The same for the model before unlearning.

    Returns:
        [`Remarks`]
    """
    # Attacks say so of the holdout set themselves.
    means = {split: of_rows for split, of_rows in statistics.items() if split != "holdout"}
    notes = [note for split, of_rows in means.items() for note in few_rows(split, len(of_rows["answer"]))]
    left_out = {}
    rows = len(statistics["forget"]["answer"]) if "forget" in statistics else 0
    if gold is None or rows < 2:
        left_out["forget_quality"] = "It needs a gold model, and at least two forget rows."
    else:
        notes += few_for_quality(rows)
    missing = [split for split in UTILITY_SPLITS if split not in statistics]
    if missing:
        notes.append(f"model_utility: the splits {' and '.join(missing)} are not there, and are left out of it.")
    attacks = remark_on_membership(statistics, gold)
    if original is None or "privacy_score" in attacks.left_out:
        left_out["overall_score"] = "It needs a holdout split, a gold model and the original model."
    return joined(Remarks(notes, left_out), attacks)


TOFU = Suite(
    hub="locuslab/TOFU",
    forget="forget01",
    splits={
        "forget": "{forget}_perturbed",
        "retain": "retain_perturbed",
        "real_authors": "real_authors_perturbed",
        "world_facts": "world_facts_perturbed",
        "holdout": "{holdout}",
    },
    required=("forget", "retain"),
    columns=dict.fromkeys(
        ("forget", "retain", "real_authors", "world_facts"), ("question", "answer", "perturbed_answer")
    )
    | {"holdout": ("question", "answer")},
    check=check,
    statistics=split_statistics,
    statements=statements,
    summarise=summarise,
    remark=remark,
    headline=(
        "forget_probability",
        "forget_paraphrase_probability",
        "retain_probability",
        "truth_ratio",
        "forget_quality",
        "model_utility",
    ),
    gold=("forget", "holdout"),
    original=UTILITY_SPLITS,
)
