"""Second answers to the forget set's prompts: refusals, alternatives, or answers that the model writes itself."""

from __future__ import annotations

import difflib
import json
import random
from collections.abc import Sequence
from pathlib import Path

from .encoder import ExampleEncoder
from .formatting import Encoded
from .refusals import REFUSALS
from .rows import Row, column_names, is_unicode, normal_form
from .splits import Splits, num_labels


FILE = "second_answers.jsonl"


def check_second_answers(splits: Splits) -> None:
    """
    Refuse a forget set whose rows have no one answer that another could take the place of.

    Raises:
        `ValueError`: Naming the kind of rows, or the row.
    """
    if splits.row_format.kind == "text":
        raise ValueError(
            "The forget set holds texts, and the `forget_objective` needs a second answer to each prompt. Give the "
            "rows as `question` and `answer`, or choose another `forget_objective`."
        )
    for index, row in enumerate(splits.rows):
        if splits.row_format.answers(row) != 1:
            raise ValueError(
                f"forget[{index}] has several answers of the assistant, and the `forget_objective` puts a second one "
                "in the place of one. Give each answer as a row of its own, or choose another `forget_objective`."
            )


def given_answers(splits: Splits, source: str, count: int, seed: int) -> list[list[str]]:
    """
    The second answers of each forget row, as far as the model does not write them.

    Args:
        splits ([`Splits`]):
            The forget set.
        source (`str`):
            `"refusals"`, a column of the forget set, or a text file with one answer per line.
        count (`int`):
            Answers per row that are dealt from a list. A column's are all taken.
        seed (`int`):
            Seed of the deal.

    Raises:
        `ValueError`: If there is no such column or file, or a row has no second answer.
    """
    if source in splits.rows[0]:
        return [_column_answers(row, source, f"forget[{index}]") for index, row in enumerate(splits.rows)]
    sentences: Sequence[str] = REFUSALS
    if source != "refusals":
        if not Path(source).is_file():
            near = difflib.get_close_matches(source, ["refusals", "model", *splits.rows[0]], n=1, cutoff=0.6)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                "The `forget_objective` needs a second answer per forget row, and its option `answers` is "
                f'{source!r}: neither "refusals" nor "model", nor a text file, nor a column of the forget set, whose '
                f"columns are {column_names(splits.rows[0])}.{hint} "
                '"refusals" takes sentences of the package, "model" lets the model write the answers, and a column '
                "may hold a text or a list of texts."
            )
        lines = Path(source).read_text(encoding="utf-8").splitlines()
        sentences = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
        if not sentences:
            raise ValueError(f"{source} has no line with a text. It needs one second answer per line.")
    shuffled = [random.Random(f"{seed} {index}") for index in range(len(splits.rows))]
    return [draw.sample(sentences, min(count, len(sentences))) for draw in shuffled]


def _column_answers(row: Row, column: str, name: str) -> list[str]:
    value = row.get(column)
    texts = [value] if isinstance(value, str) else value
    listed = isinstance(texts, list | tuple) and len(texts) > 0
    if not listed or not all(isinstance(text, str) and text.strip() and is_unicode(text) for text in texts):
        raise ValueError(
            f"{name} has no second answer in {column!r}: it must be a text, or a list of texts. Fill it, or set the "
            'option `answers` to "refusals" or "model".'
        )
    return list(texts)


def attach_answers(
    encoder: ExampleEncoder, splits: Splits, answers: Sequence[Sequence[str]], teacher_prompt: str | None = None
) -> None:
    """
    Encode the second answers, and give each view of each forget example those of its row, as `second`.

    Args:
        encoder ([`ExampleEncoder`]):
            Encodes a row.
        splits ([`Splits`]):
            The forget set.
        answers (`Sequence[Sequence[str]]`):
            The second answers of each row.
        teacher_prompt (`str`, *optional*):
            A text with a `{prompt}` field. Each second answer then also has an example `teacher`, in which it stands
            after this prompt.

    Raises:
        `ValueError`: If a row does not fit the model with its second answer.
    """
    for item, views in enumerate(splits.forget):
        row, name = splits.rows[item], f"forget[{item}]"
        encoded = [encoder.with_answer(row, splits.row_format, answer, name) for answer in answers[item]]
        taught = [
            encoder.with_answer(row, splits.row_format, answer, name, teacher_prompt) if teacher_prompt else []
            for answer in answers[item]
        ]
        for number, view in enumerate(views):
            view["second"] = [each[number] | {"item": item} for each in encoded]
            for second, teachers in zip(view["second"], taught, strict=True):
                if teachers:
                    second["teacher"] = _fitting(teachers[number], second, name)
    for number, second in enumerate(splits.second):
        second["row"] = number


def _fitting(teacher: Encoded, second: Encoded, name: str) -> Encoded:
    """Refuse a teacher whose answer has other tokens."""
    if num_labels(teacher) != num_labels(second):
        raise ValueError(
            f"{name}: with the instruction to the teacher the answer has other tokens than without. Raise "
            "`max_length`."
        )
    return teacher


def instructions(splits: Splits, instruction: str) -> list[str]:
    """
    What the model is asked for second answers, row by row.

    Raises:
        `ValueError`: If a row's prompt is not a text.
    """
    prompts = []
    for index, row in enumerate(splits.rows):
        prompt, answer = splits.row_format.turn(row)
        if prompt is None:
            raise ValueError(
                f'forget[{index}] is a conversation of several turns, and `answers="model"` asks the model single '
                'questions. Give the second answers in a column, or set `answers` to "refusals".'
            )
        prompts.append(instruction.format(prompt=prompt, answer=answer))
    return prompts


def usable_answers(splits: Splits, row: int, written: Sequence[str], may_repeat: bool = False) -> list[str]:
    """
    Leave out what is empty or repeated and, unless it may be there, the very answer that is to be forgotten.

    Args:
        splits ([`Splits`]):
            The forget set.
        row (`int`):
            Number of the row.
        written (`Sequence[str]`):
            What the model wrote.
        may_repeat (`bool`, *optional*, defaults to `False`):
            Whether the row's own answer may be there.

    Returns:
        `list[str]`: May be empty.
    """
    _, answer = splits.row_format.turn(splits.rows[row])
    others = {normal_form([text]): text for text in written if text.strip()}
    if not may_repeat:
        others.pop(normal_form([answer]), None)
    return list(others.values())


def write_answers(answers: Sequence[Sequence[str]]) -> str:
    """The second answers as JSON lines, one per forget row."""
    rows = [{"row": row, "answers": list(texts)} for row, texts in enumerate(answers)]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_answers(path: Path) -> list[list[str]]:
    """
    Read what [`write_answers`] wrote.

    Raises:
        `ValueError`: If there is no such file.
    """
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: the second answers that the model wrote before the run. Copy it back, or begin anew."
        )
    return [json.loads(line)["answers"] for line in path.read_text(encoding="utf-8").splitlines()]
