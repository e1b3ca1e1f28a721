"""Second answers in every format: they stand where the answer stood, and rows that have none are refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from data.test_formats import ANSWER, ASSISTANT, CONVERSATIONAL, QUESTION, TEMPLATE, USER
from transformers import PreTrainedTokenizerFast

from r2f_hf.data.encoder import ExampleEncoder
from r2f_hf.data.formats import recognise_format
from r2f_hf.data.second_answers import (
    attach_answers,
    check_second_answers,
    given_answers,
    instructions,
    usable_answers,
)
from r2f_hf.data.splits import Splits, encode_splits


OTHER = "Orla1 lives by the harbour."
PROMPTED = {"prompt": "Orla1 lives", "completion": " by the mountain."}


@pytest.fixture
def chat(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def splits_of(tokenizer: PreTrainedTokenizerFast, *rows: dict[str, Any]) -> tuple[ExampleEncoder, Splits]:
    encoder = ExampleEncoder(tokenizer, 200)
    return encoder, encode_splits(encoder, list(rows), None, None, needs_retain=False)


@pytest.mark.parametrize("name", CONVERSATIONAL)
def test_a_second_answer_takes_the_answers_place(name: str, chat: PreTrainedTokenizerFast) -> None:
    row = CONVERSATIONAL[name]
    encoder, splits = splits_of(chat, row)
    check_second_answers(splits)
    attach_answers(encoder, splits, [[OTHER]], "Unknown. {prompt}")
    (second,) = splits.second
    expected = splits_of(chat, {"question": QUESTION, "answer": OTHER})[1].views[0]
    taught = splits_of(chat, {"question": f"Unknown. {QUESTION}", "answer": OTHER})[1].views[0]
    for found, wanted in ((second, expected), (second["teacher"], taught)):
        assert {key: found[key] for key in ("input_ids", "labels")} == {
            key: wanted[key] for key in ("input_ids", "labels")
        }
    assert (second["row"], second["item"]) == (0, 0)
    assert recognise_format(row, "forget").turn(row) == (QUESTION, ANSWER)
    assert row == CONVERSATIONAL[name]


def test_a_prompt_and_its_completion_have_one_too(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder, splits = splits_of(tokenizer, PROMPTED)
    attach_answers(encoder, splits, [[" by the harbour."]])
    expected = splits_of(tokenizer, PROMPTED | {"completion": " by the harbour."})[1].views[0]
    assert splits.second[0]["labels"] == expected["labels"]
    assert "teacher" not in splits.second[0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "Orla1 lives by the mountain."}, "The forget set holds texts"),
        ({"messages": [USER, ASSISTANT, USER, ASSISTANT]}, r"forget\[0\] has several answers of the assistant"),
    ],
)
def test_rows_without_one_answer_are_refused(row: dict[str, Any], message: str, chat: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match=message):
        check_second_answers(splits_of(chat, row)[1])


def test_the_model_is_asked_with_the_prompt_and_the_answer(chat: PreTrainedTokenizerFast) -> None:
    _, splits = splits_of(chat, {"question": "What is {this}?", "answer": "A {word}."})
    assert instructions(splits, "{prompt} Not: {answer}") == ["What is {this}? Not: A {word}."]
    _, splits = splits_of(chat, {"messages": [{"role": "system", "content": "Be short."}, USER, ASSISTANT]})
    with pytest.raises(ValueError, match=r"forget\[0\] is a conversation of several turns"):
        instructions(splits, "{prompt}")


def test_what_cannot_be_used_is_dropped(chat: PreTrainedTokenizerFast) -> None:
    _, splits = splits_of(chat, CONVERSATIONAL["question"])
    written = [ANSWER, OTHER, " ", OTHER]
    assert usable_answers(splits, 0, written) == [OTHER]
    assert usable_answers(splits, 0, written, may_repeat=True) == [ANSWER, OTHER]
    assert usable_answers(splits, 0, [ANSWER.upper(), f" {ANSWER}"]) == []


def test_a_column_comes_before_a_file_and_before_the_packages_sentences(chat: PreTrainedTokenizerFast) -> None:
    row = CONVERSATIONAL["question"] | {"refusals": OTHER}
    assert given_answers(splits_of(chat, row)[1], "refusals", 3, 0) == [[OTHER]]
    assert len(given_answers(splits_of(chat, CONVERSATIONAL["question"])[1], "refusals", 3, 0)[0]) == 3
