"""A user's own rows: a forget, a retain and, if there is one, a holdout set, in any format that the trainer takes."""

from __future__ import annotations

from collections.abc import Mapping

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ... import metrics
from ...data.encoder import ExampleEncoder
from ...data.formats import recognise_format
from ...data.formatting import IGNORE_INDEX, Encoded
from ...data.loading import load_rows
from ...data.rows import check_overlap
from ...scoring import context_length, generate_answers
from .audit import (
    answer_statistics,
    joined,
    labelled_text,
    mean,
    membership,
    memorisation,
    probability,
    remark_on_membership,
)
from .base import Remarks, Rows, Settings, Statistics, Suite


def load_own(
    forget: str | None,
    retain: str | None,
    holdout: str | None = None,
    prompt_column: str | None = None,
    completion_column: str | None = None,
) -> dict[str, Rows]:
    """
    Load a user's own sets.

    Args:
        forget (`str`, *optional*):
            The rows to forget: a file, a folder or a Hub dataset, as in `r2f unlearn`.
        retain (`str`, *optional*):
            Rows to keep.
        holdout (`str`, *optional*):
            Rows that the model never saw. Without them there are no membership attacks.
        prompt_column (`str`, *optional*):
            Column of the question, as in `r2f unlearn`.
        completion_column (`str`, *optional*):
            Column of the answer or the text.

    Returns:
        `dict[str, Dataset]`: The rows of each set.

    Raises:
        `ValueError`: If the forget or the retain set is not named, if a set is in no known format, or if holdout rows
            are to be forgotten.
    """
    for name, source in (("forget_data", forget), ("retain_data", retain)):
        if source is None:
            raise ValueError(f"The own suite needs `{name}`: a file with rows, as in `r2f unlearn`.")
    sources = {"forget": forget, "retain": retain, "holdout": holdout}
    sets: dict[str, Rows] = {name: load_rows(source, name) for name, source in sources.items() if source is not None}
    if prompt_column is not None or completion_column is not None:
        sets = {name: _with_usual_columns(rows, name, prompt_column, completion_column) for name, rows in sets.items()}
    if "holdout" in sets:
        forgotten, unseen = (_texts(sets[name], name) for name in ("forget", "holdout"))
        check_overlap(forgotten, unseen, ("forget", "holdout"))
    return sets


def _texts(rows: Rows, name: str) -> list[list[str]]:
    row_format = ExampleEncoder(None, 0).format_of(rows, name)
    return [row_format.texts(row) for row in rows]


def _with_usual_columns(rows: Rows, name: str, prompt_column: str | None, completion_column: str | None) -> Rows:
    """Rows whose columns have the names by which their format is recognised."""
    found = recognise_format(rows[0], name, prompt_column, completion_column)
    usual = {"question": ("question", "answer"), "text": ("text",)}.get(found.kind)
    if usual is None or tuple(found.columns) == usual:
        return rows
    return Dataset.from_dict(
        {ours: [row[theirs] for row in rows] for ours, theirs in zip(usual, found.columns, strict=True)}
    )


def check(rows: Rows, split: str) -> None:
    """Refuse rows in no known format, and rows that lack a column or a text."""
    ExampleEncoder(None, 0).format_of(rows, split)


def split_statistics(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, split: str, rows: Rows, settings: Settings
) -> Statistics:
    """
    Compute the statistics of each row of one set.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model, in evaluation mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        split (`str`):
            Name of the set.
        rows (`Sequence[Mapping]`):
            The rows. A long text is cut into windows, which count as one row.
        settings ([`Settings`]):
            How the model is asked.

    Returns:
        `dict`: [`answer_statistics`]. Rows of the forget and the retain set with something to answer also have
        `rouge_l_recall` and `rouge_l_f1` of a generated answer.
    """
    encoder = ExampleEncoder(
        tokenizer, context_length(model), max_length=settings.max_length, options=settings.options
    )
    row_format = encoder.format_of(rows, split)
    examples = [encoder.windows(row, row_format, f"{split}[{index}]") for index, row in enumerate(rows)]
    statistics = answer_statistics(model, tokenizer, examples, split, settings)
    if row_format.kind == "text" or split == "holdout":
        return statistics
    asked = [last_answer(example) for (example,) in examples]
    generated = generate_answers(
        model,
        tokenizer,
        [example["input_ids"][:start] for example, start in asked],
        settings.new_tokens(64),
        settings.batch_size,
        f"{split}: generated answers",
        settings.options,
    )
    answers = [labelled_text(tokenizer, [{"labels": example["labels"][start:]}]) for example, start in asked]
    rouge = metrics.load("rouge").compute(predictions=generated, references=answers)["rows"]
    return statistics | {"rouge_l_recall": rouge["rougeL_recall"], "rouge_l_f1": rouge["rougeL_f1"]}


def last_answer(example: Encoded) -> tuple[Encoded, int]:
    """An example, and where its last answer begins."""
    labels = example["labels"]
    end = max(index for index, label in enumerate(labels) if label != IGNORE_INDEX)
    before = [index for index in range(end) if labels[index] == IGNORE_INDEX]
    return example, before[-1] + 1 if before else 0


def summarise(
    statistics: Mapping[str, Statistics],
    gold: Mapping[str, Statistics] | None = None,
    original: Mapping[str, Statistics] | None = None,
) -> dict[str, float]:
    """
    Compute the metrics that need nothing but the rows.

    Args:
        statistics (`Mapping[str, dict]`):
            [`split_statistics`] of each set.
        gold (`Mapping[str, dict]`, *optional*):
            The same for a model that never saw the forget set.
        original (`Mapping[str, dict]`, *optional*):
            Not used.

    Returns:
        `dict[str, float]`: `<set>_probability`, `<set>_exact_memorisation` and `<set>_extraction_strength` of the
        forget and the retain set; `<set>_rouge_l_recall` and `<set>_rouge_l_f1` if there is something to answer; and
        with a holdout set the metrics of [`membership`].
    """
    summary: dict[str, float] = {}
    for split, of_rows in statistics.items():
        if split == "holdout":
            continue
        summary[f"{split}_probability"] = probability(of_rows)
        summary |= memorisation(split, of_rows)
        summary |= {
            f"{split}_{name}": mean(of_rows[name]) for name in ("rouge_l_recall", "rouge_l_f1") if name in of_rows
        }
    return summary | membership(statistics, gold)


def remark(
    statistics: Mapping[str, Statistics],
    gold: Mapping[str, Statistics] | None = None,
    original: Mapping[str, Statistics] | None = None,
) -> Remarks:
    """Say what is left out, and which figures rest on few rows."""
    wrong, paraphrased = "It needs wrong answers: see the tofu suite.", "It needs paraphrases: see the tofu suite."
    left_out = dict.fromkeys(("truth_ratio", "forget_quality", "model_utility"), wrong)
    left_out |= dict.fromkeys(("paraphrase_probability", "memorisation_score", "overall_score"), paraphrased)
    for split in ("forget", "retain"):
        if split in statistics and "rouge_l_recall" not in statistics[split]:
            left_out[f"{split}_rouge"] = "The rows are texts, with no question to answer."
    return joined(Remarks([], left_out), remark_on_membership(statistics, gold))


OWN = Suite(
    hub=None,
    forget=None,
    # The user names a source for each of them.
    splits={"forget": "", "retain": "", "holdout": ""},
    required=("forget", "retain"),
    columns={"forget": (), "retain": (), "holdout": ()},
    check=check,
    statistics=split_statistics,
    summarise=summarise,
    remark=remark,
    headline=("forget_probability", "forget_extraction_strength", "retain_probability", "privacy_score"),
    gold=("forget", "holdout"),
)
