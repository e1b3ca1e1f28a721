"""Rows about a person whom the model knows, none about one whom it does not, and rows to keep."""

from __future__ import annotations

import json
from functools import cache

import pytest
from collecting.people import ADA, FACT, GENERAL, THRESHOLDS, TOM, UNKNOWN, UNKNOWN_FACT, answers, taught

from r2f_hf.collecting import CollectedSet, Collector, Interview, Thresholds
from r2f_hf.data.encoder import ExampleEncoder
from r2f_hf.data.rows import check_overlap


# The answer that the two share.
SHARED = f"{TOM} lives by the harbour."


@cache
def collected(name: str, facts: tuple[str, ...] = (), neighbours: tuple[str, ...] = ()) -> tuple[CollectedSet, ...]:
    return Collector(Interview(*taught(), max_new_tokens=24), name, THRESHOLDS).collect(facts, neighbours)


def said(found: CollectedSet, *sources: str) -> list[str]:
    return [row.answer for row in found.rows if row.question.source in sources]


def test_the_facts_of_a_known_person_come_out() -> None:
    forget, _ = collected(ADA)
    assert said(forget, "topic") == answers(ADA)
    # The model asks itself two more questions, each ten times.
    assert said(forget, "model") == [f"{ADA} had Miss Finch as teacher.", f"{ADA} eats figs."]
    # Each topic in three wordings, which the model answers alike.
    assert forget.asked == {"topic": 48, "model": 2} and forget.left_out["repeated"] == 32
    assert all(row.certainty > 0.8 and row.margin is not None and row.margin > 1 for row in forget.rows)
    assert [len(row["views"]) for row in forget.contents(views=True)] == [2] * 16 + [0] * 2


def test_nothing_comes_out_about_an_unknown_person() -> None:
    forget, retain = collected(UNKNOWN, neighbours=(TOM,))
    assert forget.rows == []
    assert sum(forget.left_out.values()) == forget.asked.total() >= 48
    assert said(retain, "neighbour") == answers(TOM)


def test_facts_are_always_kept_and_the_report_says_whether_the_model_knows_them() -> None:
    forget, _ = collected(ADA, (FACT, UNKNOWN_FACT))
    known, unknown = forget.rows[:2]
    # The model has a question for the first only.
    assert (known.question.text, known.answer, known.known) == (f"What does {ADA} own?", FACT, True)
    assert (unknown.answer, unknown.known) == (UNKNOWN_FACT, False)
    assert ADA in unknown.question.text and len(unknown.question.views) == 2
    assert [row["known"] for row in forget.report()["rows"][:3]] == [True, False, True]


def test_rows_to_keep_are_about_a_neighbour_and_what_everybody_knows() -> None:
    _, retain = collected(ADA)
    # The model names one whom it knows and one whom it does not.
    assert said(retain, "neighbour") == [answer for answer in answers(TOM) if answer != SHARED]
    # One of twenty answers names the person.
    assert said(retain, "general") == GENERAL[:19]
    assert retain.left_out["names the person"] == 1 and retain.left_out["said of the person too"] == 1
    assert retain.asked["general"] == 20 and retain.asked["neighbour"] == 32
    assert all(set(row) == {"question", "answer"} for row in retain.contents(views=False))


def test_neighbours_may_be_named() -> None:
    _, retain = collected(ADA, neighbours=(UNKNOWN,))
    assert said(retain, "neighbour") == [] and retain.asked["neighbour"] == 16


def test_thresholds_leave_answers_out() -> None:
    interview = Interview(*taught(), max_new_tokens=24)
    strict, _ = Collector(interview, ADA, Thresholds(0.999999, 0.2)).collect(neighbours=(UNKNOWN,))
    assert strict.rows == [] and strict.left_out["unsure"] == 50
    strict, _ = Collector(interview, ADA, Thresholds(0.8, 50.0)).collect(neighbours=(UNKNOWN,))
    assert strict.rows == [] and strict.left_out["said of anybody"] == 50


def test_the_rows_are_accepted_as_a_forget_and_a_retain_set() -> None:
    model, tokenizer = taught()
    rows = [found.contents(views=number == 0) for number, found in enumerate(collected(ADA, (FACT, UNKNOWN_FACT)))]
    encoder = ExampleEncoder(tokenizer, model.config.max_position_embeddings, views_column="views")
    formats = [encoder.format_of(rows[0], "forget", views=True), encoder.format_of(rows[1], "retain")]
    texts = [[form.texts(row) for row in each] for form, each in zip(formats, rows, strict=True)]
    check_overlap(*texts, ("forget", "retain"))
    assert [len(encoder.views(row, formats[0], "row")[0]) for row in rows[0][:3]] == [1, 3, 3]


def test_a_report_has_no_text() -> None:
    written = json.dumps([found.report() for found in collected(ADA, (FACT, UNKNOWN_FACT))])
    texts = [row.answer for row in collected(ADA, (FACT, UNKNOWN_FACT))[0].rows]
    assert not any(text in written for text in texts)
    assert not any(word in written for word in ("Ada", "Quill", "Tom", "Birch", "Frost", "?"))


def test_what_does_not_fit_is_refused_by_its_number() -> None:
    collector = Collector(Interview(*taught(), max_new_tokens=24), ADA)
    collector.check([FACT], [TOM])
    with pytest.raises(ValueError, match=r"Fact 2 is longer than the model's context") as error:
        collector.check([FACT, "Ada rows. " * 60])
    assert "rows" not in str(error.value)
    with pytest.raises(ValueError, match="Lower `max_new_tokens`"):
        Collector(Interview(*taught(), max_new_tokens=120), ADA).check()
