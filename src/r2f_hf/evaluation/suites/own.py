"""A user's own rows: a forget, a retain and, if there is one, a holdout set, in any format that the trainer takes."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ... import metrics
from ...data.collator import pad_token_id
from ...data.encoder import ExampleEncoder
from ...data.formats import RowFormat, plain_messages, recognise_format
from ...data.formatting import IGNORE_INDEX, Encoded
from ...data.loading import load_rows
from ...data.rows import check_overlap
from ...scoring import context_length, generate_answers, score_examples
from .audit import (
    answer_statistics,
    at_key_words,
    check_key_words,
    few_for_quality,
    few_rows,
    forget_quality,
    joined,
    labelled_text,
    mean,
    membership,
    memorisation,
    memorisation_score,
    probability,
    remark_on_membership,
    truth_ratio,
)
from .base import Remarks, Rows, Settings, Statements, Statistics, Suite, is_text, no_text, texts


# Columns that a row may have besides those of its format.
FURTHER = ("perturbed_answer", "paraphrased_answer", "key_words")
WRONG = "It needs wrong answers to questions: a column `perturbed_answer`, or `write_wrong_answers`."


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
        `ValueError`: If the forget or the retain set is not named, if a set is in no known format, or if two sets
            share rows.
    """
    for name, source in (("forget_data", forget), ("retain_data", retain)):
        if source is None:
            raise ValueError(f"The own suite needs `{name}`: a file with rows, as in `r2f unlearn`.")
    sources = {"forget": forget, "retain": retain, "holdout": holdout}
    sets: dict[str, Rows] = {name: load_rows(source, name) for name, source in sources.items() if source is not None}
    if prompt_column is not None or completion_column is not None:
        sets = {name: _with_usual_columns(rows, name, prompt_column, completion_column) for name, rows in sets.items()}
    found = {name: _texts(rows, name) for name, rows in sets.items()}
    for pair in combinations(sets, 2):
        check_overlap(found[pair[0]], found[pair[1]], pair)
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
    named = dict(zip(usual, found.columns, strict=True)) | {each: each for each in FURTHER if each in rows[0]}
    return Dataset.from_dict({ours: [row[theirs] for row in rows] for ours, theirs in named.items()})


def check(rows: Rows, split: str) -> None:
    """Refuse rows in no known format, rows that lack a column or a text, and further answers that are not text."""
    ExampleEncoder(None, 0).format_of(rows, split)
    check_key_words(rows, split)
    for index, row in enumerate(rows):
        for column in ("perturbed_answer", "paraphrased_answer"):
            value = row.get(column) or []
            several = column == "perturbed_answer" and isinstance(value, list | tuple)
            if value != [] and not all(map(is_text, value if several else [value])):
                raise no_text(split, index, column)


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
    statistics |= {"rouge_l_recall": rouge["rougeL_recall"], "rouge_l_f1": rouge["rougeL_f1"]}
    if not any(row.get("perturbed_answer") for row in rows):
        return statistics
    return statistics | _truth(model, tokenizer, split, rows, encoder, settings)


def _truth(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    split: str,
    rows: Rows,
    encoder: ExampleEncoder,
    settings: Settings,
) -> Statistics:
    """Log-probabilities of the answers in other words, and of wrong ones."""
    row_format = encoder.format_of(rows, split)
    said = [[row.get("paraphrased_answer") or None, *(texts(row.get("perturbed_answer") or []))] for row in rows]
    examples = [
        only_answer(encoder.windows(with_answer(row, row_format, text), row_format, f"{split}[{index}]")[0])
        for index, (row, answers) in enumerate(zip(rows, said, strict=True))
        for text in answers
    ]
    padding = pad_token_id(tokenizer, model)
    log_probs, tokens = score_examples(model, examples, padding, settings.batch_size, f"{split}: answers")
    scores = iter((log_probs / tokens).tolist())
    found = [[next(scores) for _ in answers] for answers in said]
    return {
        "paraphrase": [of_row[0] for of_row in found],
        "wrong": [of_row[1:] for of_row in found],
        "paraphrased": [bool(row.get("paraphrased_answer")) for row in rows],
    }


def with_answer(row: Mapping[str, Any], row_format: RowFormat, text: str | None) -> dict[str, Any]:
    """A row with another text in place of its last answer, or as it is if there is none."""
    column = row_format.completion_column or row_format.prompt_column
    if text is None or column is None:
        return dict(row)
    value = row[column]
    if isinstance(value, str):
        # A completion begins with the space after its prompt.
        return row | {column: value[: len(value) - len(value.lstrip())] + text}
    messages = plain_messages(value)
    last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
    return row | {column: [*messages[:last], messages[last] | {"content": text}]}


def only_answer(example: Encoded) -> Encoded:
    """An example with labels at its last answer alone."""
    start = last_answer(example)[1]
    return {
        "input_ids": example["input_ids"],
        "labels": [IGNORE_INDEX] * start + example["labels"][start:],
    }


def statements(
    tokenizer: PreTrainedTokenizerBase, splits: Mapping[str, Rows], context: int, settings: Settings
) -> Statements:
    """
    Encode the statements by which [`run_depth`] looks into a model.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.
        splits (`Mapping[str, Sequence[Mapping]]`):
            The rows of each set. True and false statements are the answers and the first wrong answers of the retain
            rows that have one. Unfamiliar ones are the holdout rows.
        context (`int`):
            What the model reads, in tokens.
        settings ([`Settings`]):
            How the model is asked.

    Returns:
        `dict[str, list[dict]]`: The encoded statements of each kind. There are none of a set with texts in several
        windows, and only forget statements if the sets have different formats: a probe would tell formats apart.
    """
    encoder = ExampleEncoder(tokenizer, context, max_length=settings.max_length, options=settings.options)
    formats = {name: encoder.format_of(rows, name) for name, rows in splits.items()}

    def encoded(name: str, rows: Rows) -> list[Encoded]:
        windows = [encoder.windows(row, formats[name], f"{name}[{index}]") for index, row in enumerate(rows)]
        return [each[0] for each in windows] if all(len(each) == 1 for each in windows) else []

    forgotten = encoded("forget", splits["forget"])
    found: Statements = {"forget": forgotten, "key_words": [], "true": [], "false": [], "unfamiliar": []}
    if forgotten:
        found["key_words"] = at_key_words(tokenizer, forgotten, splits["forget"])
    kinds = {each.kind for each in formats.values()}
    if len(kinds) == 1 and kinds != {"text"} and "holdout" in splits:
        known = [row for row in splits["retain"] if row.get("perturbed_answer")]
        wrong = [with_answer(row, formats["retain"], texts(row["perturbed_answer"])[0]) for row in known]
        found["true"], found["false"] = encoded("retain", known), encoded("retain", wrong)
        found["unfamiliar"] = encoded("holdout", splits["holdout"])
    return found


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
    Compute the metrics of a user's own rows.

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
        with a holdout set the metrics of [`membership`]. If forget rows have wrong answers, also `truth_ratio`,
        `forget_quality` with gold, and `memorisation_score` with paraphrases. If retain rows have some, also
        `retain_truth_ratio` and `model_utility`, over the retain set alone.
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
    forget, retain = (with_wrong(statistics.get(split)) for split in ("forget", "retain"))
    if forget is not None:
        summary["truth_ratio"] = truth_ratio(forget)["closer_to_1_better"]
        of_gold = None if gold is None else with_wrong(gold.get("forget"))
        summary |= {} if of_gold is None else forget_quality(forget, of_gold)
        summary |= memorisation_score(summary, forget) if all(forget["paraphrased"]) else {}
    if retain is not None:
        summary["retain_truth_ratio"] = truth_ratio(retain)["true_better"]
        numbers = [summary[f"retain_{name}"] for name in ("probability", "rouge_l_recall", "truth_ratio")]
        summary |= metrics.load("model_utility").compute(predictions=numbers)
    return summary | membership(statistics, gold)


def with_wrong(of_rows: Statistics | None) -> Statistics | None:
    """The statistics of the rows that have a wrong answer, if there are any."""
    if of_rows is None or not any(of_rows.get("wrong", ())):
        return None
    names = ("paraphrase", "wrong", "paraphrased")
    chosen = [index for index, wrong in enumerate(of_rows["wrong"]) if wrong]
    return {name: [of_rows[name][index] for index in chosen] for name in names}


def remark(
    statistics: Mapping[str, Statistics],
    gold: Mapping[str, Statistics] | None = None,
    original: Mapping[str, Statistics] | None = None,
) -> Remarks:
    """Say what is left out, and which figures rest on few rows."""
    notes, left_out = [], dict.fromkeys(("paraphrase_probability", "overall_score"), "See the tofu suite.")
    forget, retain = (with_wrong(statistics.get(split)) for split in ("forget", "retain"))
    if forget is None:
        left_out |= dict.fromkeys(("truth_ratio", "forget_quality", "memorisation_score"), WRONG)
    elif not all(forget["paraphrased"]):
        left_out["memorisation_score"] = (
            "It needs paraphrases of all answers: a column `paraphrased_answer`, or `write_paraphrases`."
        )
    if retain is None:
        left_out |= dict.fromkeys(("retain_truth_ratio", "model_utility"), WRONG)
    if forget is not None and (gold is None or len(forget["wrong"]) < 2):
        left_out["forget_quality"] = "It needs a gold model, and wrong answers of at least two forget rows."
    elif forget is not None:
        notes += few_for_quality(len(forget["wrong"]))
    for split, chosen in (("forget", forget), ("retain", retain)):
        rows = len(statistics.get(split, {}).get("loss", ()))
        if chosen is not None and len(chosen["wrong"]) < rows:
            without = rows - len(chosen["wrong"])
            notes.append(f"{split}: {without} of {rows} rows have no wrong answer. The truth ratio leaves them out.")
        plain = 0 if chosen is None else chosen["paraphrased"].count(False)
        if plain:
            notes.append(f"{split}: {plain} rows have no paraphrase. The truth ratio takes the answer itself.")
    for split in ("forget", "retain"):
        notes += few_rows(split, len(statistics[split]["loss"])) if split in statistics else []
        if split in statistics and "rouge_l_recall" not in statistics[split]:
            left_out[f"{split}_rouge"] = "The rows are texts, with no question to answer."
    return joined(Remarks(notes, left_out), remark_on_membership(statistics, gold))


OWN = Suite(
    hub=None,
    forget=None,
    # The user names a source for each of them.
    splits={"forget": "", "retain": "", "holdout": ""},
    required=("forget", "retain"),
    columns={"forget": (), "retain": (), "holdout": ()},
    check=check,
    statistics=split_statistics,
    statements=statements,
    summarise=summarise,
    remark=remark,
    headline=("forget_probability", "forget_extraction_strength", "retain_probability", "privacy_score"),
    gold=("forget", "holdout"),
)
