"""Templates about a person, and questions read from what a model says."""

from __future__ import annotations

import pytest

from r2f_hf.collecting.questions import TOPICS, general_questions, question_prompts, read_question, topic_questions


def test_every_topic_names_the_person_in_three_different_wordings() -> None:
    questions = topic_questions("Ana Soto")
    assert len(questions) == len(TOPICS) == 16
    wordings = [text for question in questions for text in (question.text, *question.views)]
    assert all("Ana Soto" in text and "{" not in text for text in wordings)
    assert len(set(wordings)) == len(wordings) == 3 * 16
    assert all("Ana Soto" in prompt for prompt in question_prompts("Ana Soto"))


def test_general_questions_are_about_twenty_and_have_no_views() -> None:
    questions = general_questions()
    assert len({question.text for question in questions}) == 20
    assert all(question.text.endswith("?") and not question.views for question in questions)


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("Where was Ana Soto born?", "Where was Ana Soto born?"),
        ("1. Where was Ana Soto born?\n", "Where was Ana Soto born?"),
        ('One question is: "Where was ana soto born?"', "Where was ana soto born?"),
        ("Question: Where was Ana Soto born?\nAnswer: In Lima.", "Where was Ana Soto born?"),
        # Not one question, nobody's, or none at all.
        ("Where was Ana Soto born? And when?", None),
        ("Where was she born?", None),
        ("Ana Soto was born in Lima.", None),
        ("Ana Soto?", None),
        ("Who is Dr. Ana Soto?", None),
        ("Where was Ana Soto born? She was born in Lima.", None),
        ("Was Ana Soto " + "very " * 40 + "tall?", None),
        ("", None),
    ],
)
def test_a_question_is_read_only_if_it_is_one_and_names_the_person(text: str, question: str | None) -> None:
    assert read_question(text, "Ana Soto") == question
