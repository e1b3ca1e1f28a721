"""KnowUnDo (arXiv 2407.01920): what of a copyrighted work or a private life is to be forgotten, and what is not."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ... import metrics
from ...data.formatting import encode_opening
from ...scoring import generate_answers
from .audit import answer_statistics, few_rows, mean, memorisation, plain_example, probability
from .base import Remarks, Rows, Settings, Statistics, Suite, check_texts


SPLITS = ("unlearn", "retention")
# What stands between a question and its answer.
BREAK = "\n\n"


def check(rows: Rows, split: str) -> None:
    """Refuse a split whose questions and answers are not texts."""
    for index, row in enumerate(rows):
        for part in ("train", "val"):
            pairs, name = row[part], f"{split}[{index}][{part!r}]"
            columns = ("text", "labels")
            if not isinstance(pairs, list | tuple) or not all(isinstance(pair, Mapping) for pair in pairs):
                raise ValueError(f"{name} is not a list of questions ('text') and answers ('labels').")
            for number, pair in enumerate(pairs):
                missing = [column for column in columns if column not in pair]
                if missing:
                    raise ValueError(f"{name}[{number}] has no {missing[0]!r}.")
            check_texts(pairs, name, columns)
        if not row["val"]:
            raise ValueError(f"{split}[{index}]['val'] is empty. KnowUnDo evaluates on these rows.")


def prepare(splits: Mapping[str, Rows]) -> dict[str, Rows]:
    """
    Take the rows that KnowUnDo evaluates on.

    Args:
        splits (`Mapping[str, Sequence[Mapping]]`):
            The splits as KnowUnDo has them: one row with the lists `train` and `val`.

    Returns:
        `dict[str, Sequence[Mapping]]`: The questions (`text`) and answers (`labels`) of `val`.
    """
    return {split: [pair for row in rows for pair in row["val"]] for split, rows in splits.items()}


def split_statistics(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, split: str, rows: Rows, settings: Settings
) -> Statistics:
    """
    Compute the statistics of each row of one split. The texts stand as they are, without a template.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model, in evaluation mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        split (`str`):
            Name of the split.
        rows (`Sequence[Mapping]`):
            The rows, as [`prepare`] gives them.
        settings ([`Settings`]):
            How the model is asked. By default an answer has 64 tokens.

    Returns:
        `dict`: [`answer_statistics`], and `rouge_l_recall` of a generated answer.
    """
    examples = []
    for row in rows:
        example = plain_example(tokenizer, row["labels"], row["text"] + BREAK)
        examples.append([{name: values[: settings.max_length] for name, values in example.items()}])
    statistics = answer_statistics(model, tokenizer, examples, split, settings)
    written = generate_answers(
        model,
        tokenizer,
        [encode_opening(tokenizer, row["text"] + BREAK) for row in rows],
        settings.new_tokens(64),
        settings.batch_size,
        f"{split}: generated answers",
        settings.options,
    )
    rouge = metrics.load("rouge").compute(predictions=written, references=[row["labels"] for row in rows])
    return statistics | {"rouge_l_recall": rouge["rows"]["rougeL_recall"]}


def summarise(
    statistics: Mapping[str, Statistics],
    gold: Mapping[str, Statistics] | None = None,
    original: Mapping[str, Statistics] | None = None,
) -> dict[str, float]:
    """
    Compute KnowUnDo's metrics from the statistics of its splits.

    Args:
        statistics (`Mapping[str, dict]`):
            [`split_statistics`] of each split.
        gold (`Mapping[str, dict]`, *optional*):
            Not used.
        original (`Mapping[str, dict]`, *optional*):
            Not used.

    Returns:
        `dict[str, float]`: The metrics by name.

        - `unlearn_success`, 100 times 1 minus the exact memorisation of what is to be forgotten, and
          `retention_success`, 100 times that of what is to be kept;
        - `<split>_probability`, `<split>_perplexity`, `<split>_rouge_l_recall`, `<split>_exact_memorisation` and
          `<split>_extraction_strength` of both.
    """
    summary: dict[str, float] = {}
    for split, of_rows in statistics.items():
        summary[f"{split}_probability"] = probability(of_rows)
        summary[f"{split}_perplexity"] = float(np.exp(mean(of_rows["loss"])))
        summary[f"{split}_rouge_l_recall"] = mean(of_rows["rouge_l_recall"])
        summary |= memorisation(split, of_rows)
        known = summary[f"{split}_exact_memorisation"]
        summary[f"{split}_success"] = 100 * (1 - known if split == "unlearn" else known)
    return summary


def remark(
    statistics: Mapping[str, Statistics],
    gold: Mapping[str, Statistics] | None = None,
    original: Mapping[str, Statistics] | None = None,
) -> Remarks:
    """Say what is left out."""
    reason = "KnowUnDo has no rows that the model never saw."
    notes = [note for split, of_rows in statistics.items() for note in few_rows(split, len(of_rows["loss"]))]
    return Remarks(notes, {"mia": reason, "privleak": reason})


KNOWUNDO = Suite(
    hub="zjunlp/KnowUnDo",
    forget="copyright",
    splits={split: f"{{forget}}:{split}" for split in SPLITS},
    required=SPLITS,
    columns=dict.fromkeys(SPLITS, ("train", "val")),
    check=check,
    statistics=split_statistics,
    summarise=summarise,
    remark=remark,
    headline=("unlearn_success", "retention_success"),
    prepare=prepare,
)
