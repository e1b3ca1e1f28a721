"""Token ids and labels of questions, answers and plain texts."""

from __future__ import annotations

import copy

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from r2f_hf.data.formatting import encode_completion, encode_example, encode_prompt, end_of_answer


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


# A turn ends with a token of its own, as Gemma's and Phi's do.
TURNS = (
    "{% for message in messages %}<turn>{{ message.role }} {{ message.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant {% endif %}"
)


def with_turns(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens(["<turn>", "<end>"], special_tokens=True)
    tokenizer.chat_template = TURNS
    return tokenizer


def test_an_answer_ends_as_the_chat_template_ends_a_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    turns = with_turns(tokenizer)
    end = turns.convert_tokens_to_ids("<end>")
    assert end_of_answer(turns) == end != turns.eos_token_id
    assert encode_completion(turns, "Where?", "Orla1 lives.")[-1] == end
    assert encode_completion(turns, "", "Orla1 lives.")[-1] == turns.eos_token_id
    assert end_of_answer(tokenizer) == tokenizer.eos_token_id


@pytest.mark.parametrize(
    "template",
    [
        # Neither white space of its own, nor what stands before an answer that is left out, ends an answer.
        "{% for m in messages %}{{ m.role }} {{ m.content }}\n{% endfor %}<end>",
        "<end>{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
    ],
    ids=["white space", "no answer"],
)
def test_what_does_not_end_a_turn(template: str, tokenizer: PreTrainedTokenizerFast) -> None:
    turns = with_turns(tokenizer)
    turns.add_tokens(["\n"])
    turns.chat_template = template
    end = turns.convert_tokens_to_ids("<end>") if template.endswith("<end>") else tokenizer.eos_token_id
    assert end_of_answer(turns) == end


@pytest.mark.parametrize("prompt", ["Where does Orla1 live?", ""])
def test_a_tokenizer_that_closes_texts_does_not_close_a_prompt(
    prompt: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    closing = copy.deepcopy(tokenizer)
    closing.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", tokenizer.eos_token_id)]
    )
    assert closing("Orla1")["input_ids"][-1] == tokenizer.eos_token_id
    assert encode_prompt(closing, prompt) == encode_prompt(tokenizer, prompt)
    assert encode_completion(closing, prompt, "Orla1.") == encode_completion(tokenizer, prompt, "Orla1.")
