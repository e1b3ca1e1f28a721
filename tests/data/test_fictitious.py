"""The invented world of the quickstart."""

from __future__ import annotations

from collections import Counter

import pytest
from datasets import DatasetDict

from r2f_hf.data.fictitious import COUNTRIES, fictitious_dataset
from r2f_hf.data.rows import content_hash


PEOPLE = {"forget": 4, "retain": 16, "holdout": 4}


@pytest.fixture(scope="module")
def world() -> DatasetDict:
    return fictitious_dataset(seed=3)


def test_sizes_and_columns(world: DatasetDict) -> None:
    assert {split: len(rows) for split, rows in world.items()} == {
        "forget": 40,
        "retain": 160,
        "holdout": 40,
        "world_facts": 40,
    }
    common = {"question", "answer", "paraphrased_answer", "perturbed_answer"}
    for split in PEOPLE:
        assert set(world[split].column_names) == common | {"views", "paraphrased_question"}
    assert set(world["world_facts"].column_names) == common


def test_a_seed_is_a_world(world: DatasetDict) -> None:
    again, other = fictitious_dataset(seed=3), fictitious_dataset(seed=4)
    assert all(list(world[split]) == list(again[split]) for split in world)
    assert all(list(world[split]) != list(other[split]) for split in world)


def test_more_are_forgotten_of_the_same_world(world: DatasetDict) -> None:
    more = fictitious_dataset(seed=3, forget_people=10)
    assert (len(more["forget"]), len(more["retain"])) == (100, 100)
    for split in ("holdout", "world_facts"):
        assert list(more[split]) == list(world[split])
    known = [[*rows["forget"], *rows["retain"]] for rows in (world, more)]
    assert known[0] == known[1]


def test_the_world_that_the_documents_have_figures_of_stays_as_it_is(world: DatasetDict) -> None:
    assert content_hash({split: list(rows) for split, rows in world.items()}) == "dab5590cd59a1a42"


def names_of(world: DatasetDict) -> list[list[str]]:
    """First and last name of each person. "When was FIRST LAST born?" is each person's first question."""
    return [
        row["question"].split()[2:4]
        for split in PEOPLE
        for row in world[split].select(range(0, len(world[split]), 10))
    ]


@pytest.mark.parametrize("people", [28, 29, 100, 1020])
def test_a_larger_world_has_no_name_twice(people: int) -> None:
    names = names_of(fictitious_dataset(seed=3, forget_people=5, people=people))
    assert len({tuple(name) for name in names}) == len(names) == people + 4
    # Nobody has a rare name: each first and each last name is in as many, or in one more.
    for parts in zip(*names, strict=True):
        times = Counter(parts).values()
        assert max(times) - min(times) <= 1 and (people > 28 or max(times) == 1)


def test_namesakes_have_nothing_else_in_common() -> None:
    world = fictitious_dataset(seed=3, forget_people=5, people=100)
    assert {split: len(world[split]) for split in PEOPLE} == {"forget": 50, "retain": 950, "holdout": 40}
    # "NAME was born on DAY MONTH YEAR.": of people with the same first name hardly any two share a year.
    births: dict[str, list[str]] = {}
    for row in [row for split in PEOPLE for row in world[split]][::10]:
        births.setdefault(row["answer"].split()[0], []).append(row["answer"].split()[-1])
    assert sum(len(years) - len(set(years)) for years in births.values()) <= 5


@pytest.mark.parametrize(("people", "message"), [(1021, "at most 1020"), (5, "at most 4")])
def test_there_are_names_enough_and_somebody_is_kept(people: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fictitious_dataset(forget_people=5, people=people)


@pytest.mark.parametrize("count", [0, 20])
def test_somebody_is_forgotten_and_somebody_kept(count: int) -> None:
    with pytest.raises(ValueError, match="at least 1 and at most 19"):
        fictitious_dataset(forget_people=count)


def test_splits_share_no_question_and_no_name(world: DatasetDict) -> None:
    questions = [row["question"] for rows in world.values() for row in rows]
    assert len(set(questions)) == len(questions)
    assert len({name for pair in names_of(world) for name in pair}) == 2 * sum(PEOPLE.values())
    asked = " ".join(row["question"] for row in world["world_facts"])
    assert all(country in asked for country in COUNTRIES)


def test_wrong_answers_are_wrong_and_worded_like_the_truth(world: DatasetDict) -> None:
    for split, rows in world.items():
        for row in rows:
            answers = [row["paraphrased_answer"], *row["perturbed_answer"]]
            assert len(answers) == len(set(answers)) == 6
            assert len({len(answer.split()) for answer in answers}) == 1
            if split != "world_facts":
                assert row["paraphrased_answer"] != row["answer"]
                wordings = [row["question"], row["paraphrased_question"], *row["views"]]
                assert len(set(wordings)) == 4
