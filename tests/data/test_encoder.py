"""Rows become examples that fit the model, or are refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from r2f_hf.data.encoder import ExampleEncoder
from r2f_hf.data.formatting import encode_example


ROW = {"question": "Where does Orla1 live?", "answer": "Orla1 lives.", "paraphrased_question": ["Orla1 lives where?"]}


@pytest.fixture
def encoder(tokenizer: PreTrainedTokenizerFast) -> Any:
    def build(context: int = 64, **settings: Any) -> ExampleEncoder:
        return ExampleEncoder(tokenizer, context, **settings)

    return build


def test_views_are_the_wordings_with_the_rows_answer(encoder: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    built = encoder(views_column="paraphrased_question", view_templates=["Tell: {prompt}"])
    prompts = [ROW["question"], "Orla1 lives where?", f"Tell: {ROW['question']}"]
    assert built.views(ROW, "forget[0]") == [encode_example(tokenizer, prompt, ROW["answer"]) for prompt in prompts]
    assert built.original(ROW, "forget[0]") == built.views(ROW, "forget[0]")[0]
    assert built.columns == ["question", "answer"]


def test_plain_text(encoder: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    built = encoder(prompt_column=None, completion_column="answer")
    assert built.columns == ["answer"]
    assert built.original(ROW, "forget[0]") == encode_example(tokenizer, "", ROW["answer"])


def test_a_row_longer_than_the_context_is_refused_and_one_that_is_cut_is_not(encoder: Any) -> None:
    length = len(encoder().original(ROW, "forget[3]")["input_ids"])
    encoder(context=length).original(ROW, "forget[3]")
    with pytest.raises(ValueError, match=rf"forget\[3\] has {length} tokens, the model reads at most {length - 1}"):
        encoder(context=length - 1).original(ROW, "forget[3]")
    cut = encoder(context=length - 1, max_length=length - 1).original(ROW, "forget[3]")
    assert len(cut["input_ids"]) == length - 1


@pytest.mark.parametrize("settings", [{}, {"prompt_column": None}], ids=["answer", "plain text"])
@pytest.mark.parametrize("completion", ["", " \n", None, 7])
def test_an_empty_completion_is_refused(completion: object, settings: dict[str, Any], encoder: Any) -> None:
    with pytest.raises(ValueError, match=r"retain\[2\] has an empty 'answer', or one that is not text"):
        encoder(**settings).original(ROW | {"answer": completion}, "retain[2]")


@pytest.mark.parametrize("prompt", ["", None])
def test_an_empty_prompt_is_refused_and_not_taken_for_plain_text(prompt: object, encoder: Any) -> None:
    with pytest.raises(ValueError, match=r"forget\[2\] has an empty 'question'"):
        encoder().views(ROW | {"question": prompt}, "forget[2]")


def test_a_completion_that_is_cut_off_whole_is_refused(encoder: Any) -> None:
    with pytest.raises(ValueError, match=r"retain\[2\] has no token left to take the loss on"):
        encoder(max_length=4).original(ROW, "retain[2]")


@pytest.mark.parametrize("view", ["", " ", None, 7])
def test_an_empty_view_is_refused_and_not_taken_for_plain_text(view: object, encoder: Any) -> None:
    with pytest.raises(ValueError, match=r"forget\[2\] has an empty view in 'paraphrased_question', or one"):
        encoder(views_column="paraphrased_question").views(ROW | {"paraphrased_question": ["Who?", view]}, "forget[2]")
