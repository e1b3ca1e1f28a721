"""Rows that nearly repeat each other are found, and others are not."""

from __future__ import annotations

import pytest

from r2f_hf.data.duplicates import contained_rows, near_duplicates
from r2f_hf.metrics.words import WordTokenizer


FACTS = [
    ["Where does Orla live?", "Orla lives in a small white house by the harbour of Eastmere."],
    ["What does Bram do?", "Bram repairs clocks in the old town, above the bakery."],
    ["Who taught Cleo to sing?", "Cleo learned it from her grandmother, who led the choir of Hartsby."],
]


def test_a_row_in_other_case_and_punctuation_is_the_same() -> None:
    other = [FACTS[1], ["where does ORLA live?", "Orla lives in a small  white house by the harbour of Eastmere!"]]
    found = near_duplicates(FACTS, other)
    assert [(pair.first, pair.second) for pair in found] == [(0, 1), (1, 0)]
    assert found[0].similarity == found[1].similarity == 1


def test_a_few_words_more_make_a_near_duplicate_and_another_fact_does_not() -> None:
    longer = [[FACTS[0][0], FACTS[0][1] + " She has lived there since spring."]]
    assert [(pair.first, pair.second) for pair in near_duplicates(FACTS, longer)] == [(0, 0)]
    assert near_duplicates(FACTS[:1], FACTS[1:]) == []


@pytest.mark.parametrize("count", [1, 300])
def test_similarities_are_near_the_true_share_of_word_pairs(count: int) -> None:
    words = [f"w{index}" for index in range(100)]
    first = [[" ".join(words)]] * 1
    second = [[" ".join(words[:80] + [f"x{index}{number}" for index in range(20)])] for number in range(count)]
    found = near_duplicates(first, second, threshold=0.5)
    assert found and all(pair.similarity == pytest.approx(79 / 119, abs=0.15) for pair in found)


def test_texts_of_one_word_are_compared_too() -> None:
    assert near_duplicates([["Orla"]], [["orla"], ["Bram"]]) == [(0, 0, 1.0)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            ["奥拉住在哪里?", "奥拉住在港口旁边的一座白色小房子里。"],
            ["奥拉住在哪里", "奥拉住在港口旁边的一座白色小房子里,很安静"],
        ),
        (
            ["オーラはどこに住んでいますか。", "港のそばの白い家に住んでいます。"],
            ["オーラはどこに住んでいますか", "港のそばの白い家に住んでいます!はい"],
        ),
        (["???", "!!!"], ["???", "!!!"]),
    ],
    ids=["Chinese", "Japanese", "punctuation"],
)
def test_texts_without_spaces_between_words_are_compared_by_characters(one: list[str], other: list[str]) -> None:
    words = WordTokenizer().tokenize
    assert [pair[:2] for pair in near_duplicates([one], [other], words=words)] == [(0, 0)]
    assert near_duplicates([one], [["布拉姆在老城区修理钟表。"]], words=words) == []


def test_a_row_that_stands_in_a_document_is_found() -> None:
    others = [f"In the year {1900 + index} nothing of note took place in the valley." for index in range(200)]
    document = " ".join([*others[:90], FACTS[1][1].upper(), *others[90:]])
    assert near_duplicates([[document]], FACTS) == []
    assert contained_rows([["A short one."], [document]], FACTS) == [(1, 1, 1.0)]
    # A part of it, and too little.
    half = [FACTS[1][0], "Bram repairs clocks in the old town, and reads."]
    assert [pair[:2] for pair in contained_rows([[document]], [half])] == [(0, 0)]
    assert contained_rows([[document]], [[FACTS[1][0], "A bakery stands at the old gate."]]) == []
