"""What a reader of the retain set expects of an answer: common words, not facts."""

from __future__ import annotations

import math

import pytest

from r2f_hf.data.ngrams import LEAST, MOST, AnswerNgrams


def example(prompt: list[int], answer: list[int]) -> dict[str, list[int]]:
    return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


# Answers of a name (1x, which the question has), two words that all have, a fact, and an end.
RETAIN = [example([90, 91, 10 + row], [10 + row, 20, 21, 30 + row, 2]) for row in range(4)]


def test_what_all_answers_share_is_likely_and_a_fact_is_not() -> None:
    name, word, other, fact, end = AnswerNgrams(RETAIN).log_probs(example([90, 91, 19], [19, 20, 21, 39, 2]))
    # The name is not in the retain set, but in the question.
    assert name == math.log(MOST)
    assert min(word, other) > math.log(0.8)
    # No order has seen this fact.
    assert fact == math.log(LEAST)
    assert fact < end < word


def test_the_orders_are_interpolated_by_their_weights() -> None:
    found = AnswerNgrams(RETAIN).log_probs(example([90, 91, 12], [12, 20, 21, 31]))
    # One of four facts after each context, and one of twenty tokens without any.
    assert found[3] == pytest.approx(math.log(0.05 / 20 + (0.15 + 0.3 + 0.5) / 4))


def test_there_is_a_number_for_each_token_that_a_model_predicts() -> None:
    ngrams = AnswerNgrams(RETAIN)
    # Nothing predicts the first token of a text without a prompt.
    assert len(ngrams.log_probs({"input_ids": [20, 21, 30], "labels": [20, 21, 30]})) == 2
    turns = {"input_ids": [90, 20, 91, 21, 30], "labels": [-100, 20, -100, 21, 30]}
    assert len(ngrams.log_probs(turns)) == 3
    assert all(value == math.log(LEAST) for value in AnswerNgrams([]).log_probs(example([1], [5, 6])))
