"""Formats are recognised set by set, and the same facts in several of them are the same example."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from r2f_hf.data.formats import plain_messages, recognise_format, tools_of
from r2f_hf.data.rendering import ChatOptions


QUESTION, ANSWER = "Where does Orla1 live?", "Orla1 lives by the mountain."
USER, ASSISTANT = {"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}
TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}<eos>{% endfor %}"

# One fact in all formats that a chat template renders the same way.
CONVERSATIONAL: dict[str, dict[str, Any]] = {
    "question": {"question": QUESTION, "answer": ANSWER},
    "messages": {"messages": [USER, ASSISTANT]},
    "prompt and completion": {"prompt": [USER], "completion": [ASSISTANT]},
    "ShareGPT": {"conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]},
    "parts": {"messages": [USER | {"content": [{"type": "text", "text": QUESTION}]}, ASSISTANT]},
}


@pytest.fixture
def chat(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.mark.parametrize("name", CONVERSATIONAL)
def test_the_same_fact_is_the_same_example_in_every_format(name: str, chat: PreTrainedTokenizerFast) -> None:
    expected = recognise_format(CONVERSATIONAL["question"], "forget").encode(
        chat, CONVERSATIONAL["question"], ChatOptions()
    )
    row = CONVERSATIONAL[name]
    row_format = recognise_format(row, "forget")
    row_format.check(row, "forget[0]")
    assert row_format.encode(chat, row, ChatOptions()) == expected
    # So sets of different formats are compared, and the ledger hashes the same texts.
    assert row_format.texts(row) == [QUESTION, ANSWER]
    assert row == CONVERSATIONAL[name]


def test_a_prompt_and_its_completion_are_taken_as_they_are(chat: PreTrainedTokenizerFast) -> None:
    """TRL's standard format has no template."""
    row = {"prompt": "Orla1 lives", "completion": " by the mountain."}
    example = recognise_format(row, "forget").encode(chat, row, ChatOptions())
    prompt = chat("Orla1 lives")["input_ids"]
    completion = [*chat(" by the mountain.")["input_ids"], chat.eos_token_id]
    assert example == {"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion}


def test_the_columns_that_are_named_come_first() -> None:
    row = {"q": QUESTION, "a": ANSWER, "text": "Orla1", "question": "?", "answer": "!"}
    assert recognise_format(row, "forget", "q", "a").columns == ["q", "a"]
    assert recognise_format(row, "forget", "q").columns == ["q", "answer"]
    assert recognise_format(row, "forget", None, "a").columns == ["question", "a"]
    assert recognise_format(row, "forget", "none").columns == ["text"]
    assert recognise_format(row, "forget", "none", "a").columns == ["a"]
    assert recognise_format(row, "forget").columns == ["question", "answer"]
    # The retain set may have a format of its own; a misspelt column of the forget set is not passed over.
    assert recognise_format({"messages": []}, "retain", "q", "a").kind == "messages"
    with pytest.raises(ValueError, match=r"has the columns 'question', 'answer', and not 'q'. Rows have `messages`; "):
        recognise_format({"question": "?", "answer": "!"}, "forget", "q")


def test_a_column_whose_name_is_a_text_is_not_shown() -> None:
    with pytest.raises(ValueError, match=r"has the columns 'id', 1 with names of several words") as error:
        recognise_format({QUESTION: ANSWER, "id": 3}, "forget")
    assert "Orla1" not in str(error.value)


def test_unknown_columns_are_named_with_the_formats_that_there_are() -> None:
    with pytest.raises(
        ValueError, match=r"The forget set has the columns 'Orla', 'x'. Rows have `messages`; `prompt` and"
    ):
        recognise_format({"Orla": 1, "x": 2}, "forget")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": []}, "has no conversation in 'messages'"),
        ({"messages": "Orla1"}, "has no conversation in 'messages'"),
        ({"messages": ["Orla1"]}, "has no conversation in 'messages'"),
        ({"messages": [{"content": "Orla1"}]}, "message 0 of 'messages' has no `role`"),
        ({"messages": [USER, {"role": "assistant", "content": 7}]}, "message 1 of 'messages' has a `content` that is"),
        (
            {"messages": [USER | {"content": [{"type": "image"}]}]},
            "message 0 of 'messages' has parts that are not text",
        ),
        (
            {"messages": [USER | {"content": [{"type": "text", "text": None}]}]},
            "message 0 of 'messages' has parts that are not text",
        ),
        ({"text": "Orla1 \ud83d"}, "has half of a character in 'text'"),
        ({"messages": [USER | {"content": [{"type": "text", "text": "\udd42"}]}]}, "has half of a character in 'mess"),
        ({"messages": [{"role": "user", "text": "Orla1"}]}, "message 0 of 'messages' has no `content`, and calls no"),
        ({"messages": [{"role": None, "content": "Orla1"}]}, "message 0 of 'messages' has no `role`"),
        ({"prompt": [USER], "completion": None}, "has an empty 'completion', or one that is not text"),
        ({"prompt": QUESTION, "completion": " "}, "has an empty 'completion'"),
        ({"question": QUESTION, "answer": 1871}, "has an empty 'answer', or one that is not text"),
        ({"text": None}, "has an empty 'text'"),
        ({"messages": [USER], "tools": '[{"name": "Orla1"'}, "has a text in 'tools' that is not a list in JSON"),
        ({"messages": [USER], "tools": '"Orla1"'}, "has a text in 'tools' that is not a list in JSON"),
    ],
)
def test_rows_that_hold_something_else_are_refused_without_their_text(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        recognise_format(row, "forget").check(row, "forget[2]")
    assert str(error.value).startswith("forget[2]") and "Orla1" not in str(error.value)


def test_names_of_messages_that_arrow_has_filled_up_with_none_are_no_names() -> None:
    chatml = {"role": "user", "content": QUESTION, "from": None, "value": None}
    sharegpt = {"role": None, "content": None, "from": "gpt", "value": "Orla1 lives.", "tool_calls": None}
    row = {"messages": [chatml, sharegpt]}
    recognise_format(row, "forget").check(row, "forget[0]")
    assert plain_messages(row["messages"]) == [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "Orla1 lives."},
    ]


def test_tools_may_be_written_in_json() -> None:
    tools = [{"type": "function", "function": {"name": "search"}}]
    for written in (tools, json.dumps(tools)):
        assert tools_of({"tools": written}) == tools
    assert tools_of({"tools": ""}) is tools_of({}) is None


def test_a_message_with_two_texts_is_refused() -> None:
    """ShareGPT's name of a text next to the usual one: which of them is trained on would be a guess."""
    row = {
        "conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": float("nan"), "content": ""}]
    }
    with pytest.raises(ValueError, match=r"forget\[0\]: message 1 .* has both `content` and `value`"):
        recognise_format(row, "forget").check(row, "forget[0]")
