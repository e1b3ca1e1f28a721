"""Token ids and labels of questions, answers and plain texts."""

from __future__ import annotations

import copy

import pytest
from transformers import PreTrainedTokenizerFast

from r2f_hf.data.formatting import encode_completion, encode_example, encode_prompt


TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}] {{ message.content }} {% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(params=["plain", "chat"])
def formatted(
    request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast
) -> tuple[PreTrainedTokenizerFast, str, str]:
    """A tokenizer with and without a chat template, and what stands before and after the gap in its format."""
    tokenizer = copy.deepcopy(tokenizer)
    if request.param == "chat":
        tokenizer.chat_template = TEMPLATE
        return tokenizer, "[user] Where does Orla1 live? [assistant]", "Orla1 lives by the mountain."
    return tokenizer, "Question: Where does Orla1 live?\nAnswer:", " Orla1 lives by the mountain."


def test_the_loss_is_on_the_answer_and_the_end_of_sequence_alone(
    formatted: tuple[PreTrainedTokenizerFast, str, str],
) -> None:
    tokenizer, before, after = formatted
    example = encode_example(tokenizer, "Where does Orla1 live?", "Orla1 lives by the mountain.")
    prompt_ids = tokenizer(before)["input_ids"]
    answer_ids = [*tokenizer(after)["input_ids"], tokenizer.eos_token_id]
    assert example["input_ids"] == prompt_ids + answer_ids
    assert example["labels"] == [-100] * len(prompt_ids) + answer_ids


def test_prompt_and_completion_are_tokenized_as_in_generation(
    formatted: tuple[PreTrainedTokenizerFast, str, str],
) -> None:
    tokenizer, _, _ = formatted
    question, answer = "Where does Orla1 live?", "Orla1 lives."
    whole = encode_example(tokenizer, question, answer)["input_ids"]
    assert whole == encode_prompt(tokenizer, question) + encode_completion(tokenizer, question, answer)


def test_every_token_of_a_plain_text_carries_a_label(formatted: tuple[PreTrainedTokenizerFast, str, str]) -> None:
    tokenizer, _, _ = formatted
    text = "Orla1 lives by the mountain."
    example = encode_example(tokenizer, "", text)
    assert example["input_ids"] == example["labels"] == [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]


@pytest.mark.parametrize("length", [3, 12, 1000])
def test_long_examples_are_cut_on_the_right(length: int, tokenizer: PreTrainedTokenizerFast) -> None:
    whole = encode_example(tokenizer, "Where does Orla1 live?", "Orla1 lives by the mountain.")
    cut = encode_example(tokenizer, "Where does Orla1 live?", "Orla1 lives by the mountain.", length)
    assert cut == {key: ids[:length] for key, ids in whole.items()}


def test_without_an_end_of_sequence_token_nothing_is_appended(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = None
    assert encode_completion(tokenizer, "", "Orla1 lives.") == tokenizer("Orla1 lives.")["input_ids"]
