"""MUSE (arXiv 2407.06460): news and books that a model should no longer repeat, know, or give away."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ... import metrics
from ...data.formatting import encode_opening
from ...scoring import generate_answers
from .audit import few_rows, joined, mean, membership, memorisation, probability, remark_on_membership, text_statistics
from .base import Remarks, Rows, Settings, Statistics, Suite, check_texts


KNOWLEDGE = ("knowmem_f", "knowmem_r")
TEXTS = ("forget", "holdout", "retain", "request")
COLUMNS = (
    {"verbmem": ("prompt", "gt")}
    | dict.fromkeys([f"{split}{examples}" for split in KNOWLEDGE for examples in ("", "_icl")], ("question", "answer"))
    | dict.fromkeys(TEXTS, ("text",))
)


def check(rows: Rows, split: str) -> None:
    """Refuse rows that lack a text."""
    check_texts(rows, split, COLUMNS[split])


def prepare(splits: Mapping[str, Rows]) -> dict[str, Rows]:
    """
    Put the example questions in front of the questions, as MUSE does.

    Args:
        splits (`Mapping[str, Sequence[Mapping]]`):
            The splits as MUSE has them.

    Returns:
        `dict[str, Sequence[Mapping]]`: The same without the splits of examples. Rows of `knowmem_f` and `knowmem_r`
        have a `prompt`, an `answer` and the number of `examples`.
    """
    prepared = {split: rows for split, rows in splits.items() if not split.endswith("_icl")}
    for split in KNOWLEDGE:
        examples = splits.get(f"{split}_icl", [])
        shown = "".join(f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in examples)
        if split in splits:
            prepared[split] = [
                {
                    "prompt": f"{shown}Question: {row['question']}\nAnswer: ",
                    "answer": row["answer"],
                    "examples": len(examples),
                }
                for row in splits[split]
            ]
    return prepared


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
            How the model is asked. By default it writes 128 tokens for `verbmem` and 32 for `knowmem_f` and
            `knowmem_r`.

    Returns:
        `dict`: `score` (`list[float]`), the verbatim or knowledge memorisation of each row, and how many `examples`
        stood before each question; or [`text_statistics`].
    """
    if split in TEXTS:
        return text_statistics(model, tokenizer, [row["text"] for row in rows], split, settings)
    usual, reference, metric = (
        (128, "gt", "verbatim_memorisation") if split == "verbmem" else (32, "answer", "knowledge_memorisation")
    )
    length = settings.new_tokens(usual)
    prompts = [encode_opening(tokenizer, row["prompt"]) for row in rows]
    generated = generate_answers(model, tokenizer, prompts, length, settings.batch_size, split, settings.options)
    references = [row[reference] for row in rows]
    if split == "verbmem":
        # The model had no more tokens to repeat the text.
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"][:length] for text in references]
        references = tokenizer.batch_decode(ids, skip_special_tokens=True)
    scores = metrics.load(metric).compute(predictions=generated, references=references)["rows"]
    return {"score": scores, "examples": [row.get("examples", 0) for row in rows]}


def summarise(
    statistics: Mapping[str, Statistics],
    gold: Mapping[str, Statistics] | None = None,
    original: Mapping[str, Statistics] | None = None,
) -> dict[str, float]:
    """
    Compute MUSE's metrics from the statistics of its splits.

    Args:
        statistics (`Mapping[str, dict]`):
            [`split_statistics`] of each split.
        gold (`Mapping[str, dict]`, *optional*):
            The same for a model that never saw the forget set. Only its `"forget"` and `"holdout"` are used.
        original (`Mapping[str, dict]`, *optional*):
            Not used.

    Returns:
        `dict[str, float]`: The metrics by name.

        - `verbmem_f`, `knowmem_f` and `knowmem_r`, from 0 to 100;
        - `<split>_probability`, `<split>_exact_memorisation` and `<split>_extraction_strength` of the texts of
          `forget`, `retain` and `request`;
        - with `forget` and `holdout`, the metrics of [`membership`]; `privleak_min_k` is MUSE's PrivLeak.
    """
    summary: dict[str, float] = {}
    for split, of_rows in statistics.items():
        if split not in TEXTS:
            summary["verbmem_f" if split == "verbmem" else split] = mean(of_rows["score"])
        elif split != "holdout":
            summary[f"{split}_probability"] = probability(of_rows)
            summary |= memorisation(split, of_rows)
    return summary | membership(statistics, gold)


def remark(
    statistics: Mapping[str, Statistics],
    gold: Mapping[str, Statistics] | None = None,
    original: Mapping[str, Statistics] | None = None,
) -> Remarks:
    """Say what is left out, and which figures are not as MUSE has them."""
    notes = [
        f"{split}: no example questions stood before the questions. MUSE gives ten ({split}_icl)."
        for split in KNOWLEDGE
        if split in statistics and not any(statistics[split]["examples"])
    ]
    for split, of_rows in statistics.items():
        # Attacks say so of the holdout set themselves.
        if split != "holdout":
            notes += few_rows(split, len(of_rows["loss" if split in TEXTS else "score"]))
    return joined(Remarks(notes, {}), remark_on_membership(statistics, gold))


MUSE = Suite(
    hub="muse-bench/MUSE-News",
    # The forget sets of `scal` and `sust` are asked for by name.
    forget=None,
    splits={
        "verbmem": "verbmem:forget",
        "knowmem_f": "knowmem:forget_qa",
        "knowmem_f_icl": "knowmem:forget_qa_icl",
        "knowmem_r": "knowmem:retain_qa",
        "knowmem_r_icl": "knowmem:retain_qa_icl",
        "forget": "privleak:forget",
        "holdout": "privleak:holdout",
        "retain": "privleak:retain",
        "request": "{forget}",
    },
    required=("verbmem", "knowmem_f", "knowmem_r"),
    columns=COLUMNS,
    check=check,
    statistics=split_statistics,
    summarise=summarise,
    remark=remark,
    headline=("verbmem_f", "knowmem_f", "knowmem_r", "privleak_min_k"),
    gold=("forget", "holdout"),
    prepare=prepare,
)
