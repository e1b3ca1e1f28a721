"""What is collected: rows with their certainties and margins, and what was left out and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .questions import Question


class Thresholds(NamedTuple):
    """
    Which of its answers a model knows.

    Args:
        min_certainty (`float`, *optional*, defaults to `0.8`):
            Least length-normalised probability of an answer.
        min_margin (`float`, *optional*, defaults to `0.2`):
            Nats per token by which the model has to expect an answer more of the person than of invented people.
    """

    min_certainty: float = 0.8
    min_margin: float = 0.2


class CollectedRow(NamedTuple):
    """
    A question, an answer, and how well the model knows it.

    Args:
        question ([`Question`]):
            The question.
        answer (`str`):
            The answer.
        certainty (`float`):
            Length-normalised probability of the answer.
        margin (`float`, *optional*):
            Nats per token above the same answer about invented people; `None` where the question names nobody.
        known (`bool`, *optional*, defaults to `True`):
            Whether the model knows it. Only a fact that the user brings is kept if it does not.
    """

    question: Question
    answer: str
    certainty: float
    margin: float | None = None
    known: bool = True


@dataclass
class CollectedSet:
    """
    The rows of one set, and how they came about.

    Args:
        rows (`list[CollectedRow]`, *optional*):
            The rows.
        asked (`Counter[str]`, *optional*):
            How many questions the model was asked, by their source.
        left_out (`Counter[str]`, *optional*):
            How many answers were left out, by the reason.
    """

    rows: list[CollectedRow] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)

    def contents(self, views: bool) -> list[dict[str, Any]]:
        """The rows as they are written: `question`, `answer`, and `views` where they are wanted."""
        return [
            {"question": row.question.text, "answer": row.answer}
            | ({"views": list(row.question.views)} if views else {})
            for row in self.rows
        ]

    def report(self) -> dict[str, Any]:
        """Counts, and the figures of each row by its number, without any text."""
        return {
            "asked": dict(self.asked),
            "kept": dict(Counter(row.question.source for row in self.rows)),
            "left_out": {reason: count for reason, count in self.left_out.items() if count},
            "rows": [
                {
                    "row": number,
                    "source": row.question.source,
                    "certainty": round(row.certainty, 4),
                    "margin": None if row.margin is None else round(row.margin, 4),
                    "known": row.known,
                }
                for number, row in enumerate(self.rows)
            ],
        }
