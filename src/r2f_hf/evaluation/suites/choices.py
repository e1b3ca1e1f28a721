"""Multiple choice with letters and with the texts themselves, as several suites have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ... import metrics
from ...scoring import score_choices
from .base import Rows, Settings, Statistics, is_text, no_text


def check_questions(rows: Rows, split: str) -> None:
    """
    Refuse rows without a question, without choices, or without the number of the right one.

    Raises:
        `ValueError`: For the first such row. The message names the row and the column.
    """
    for index, row in enumerate(rows):
        if not is_text(row["question"]):
            raise no_text(split, index, "question")
        choices = row["choices"]
        if not isinstance(choices, list | tuple) or len(choices) < 2 or not all(map(is_text, choices)):
            raise ValueError(f"{split}[{index}] needs at least two texts in 'choices'. Fill them in.")
        number = str(row["answer"])
        if not number.isdecimal() or int(number) >= len(choices):
            raise ValueError(
                f"{split}[{index}] has {len(choices)} choices, and its 'answer' is not the number of one of them. "
                "Numbers start at 0."
            )


def with_letters(row: Mapping[str, Any]) -> str:
    """A question, its choices under their letters, and the beginning of an answer, as in lm-evaluation-harness."""
    lines = [f"{letter}. {choice}" for letter, choice in zip(ascii_uppercase, row["choices"], strict=False)]
    return "\n".join([row["question"].strip(), *lines, "Answer:"])


def choice_statistics(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    choices: Sequence[Sequence[str]],
    answers: Sequence[int],
    desc: str,
    settings: Settings,
) -> dict[str, list[float]]:
    """
    Let a model choose.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model, in evaluation mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prompts (`Sequence[str]`):
            The text before the choices, as it stands.
        choices (`Sequence[Sequence[str]]`):
            The choices of each row.
        answers (`Sequence[int]`):
            The number of the right one.
        desc (`str`):
            Title of the progress bar.
        settings ([`Settings`]):
            How the model is asked.

    Returns:
        `dict[str, list[float]]`: `acc` and `acc_norm` of each row.
    """
    likelihoods = score_choices(model, tokenizer, prompts, choices, settings.batch_size, desc)
    found = metrics.load("multiple_choice").compute(predictions=likelihoods, labels=answers, choices=choices)
    return {name: found["rows"][name] for name in ("acc", "acc_norm")}


def letters_and_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    split: str,
    settings: Settings,
    before: str = "",
) -> Statistics:
    """
    Let a model choose by letters, and by the texts of the choices.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model, in evaluation mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        rows (`Sequence[Mapping]`):
            The rows, with `question`, `choices` and `answer`.
        split (`str`):
            Name of the split, for progress bars.
        settings ([`Settings`]):
            How the model is asked.
        before (`str`, *optional*):
            A text in front of the questions with letters.

    Returns:
        `dict[str, list[float]]`: A number per row: `acc` by letters, and `text_acc` and `text_acc_norm` by texts.
    """
    # In a local file, numbers are read as they are written.
    answers = [int(row["answer"]) for row in rows]
    letters = choice_statistics(
        model,
        tokenizer,
        [before + with_letters(row) for row in rows],
        [ascii_uppercase[: len(row["choices"])] for row in rows],
        answers,
        f"{split}: letters",
        settings,
    )
    texts = choice_statistics(
        model,
        tokenizer,
        [f"Question: {row['question'].strip()}\nAnswer:" for row in rows],
        [list(row["choices"]) for row in rows],
        answers,
        f"{split}: texts",
        settings,
    )
    return {"acc": letters["acc"], "text_acc": texts["acc"], "text_acc_norm": texts["acc_norm"]}
