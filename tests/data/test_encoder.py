"""Rows become examples that fit the model, or are refused by name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from r2f_hf.data.encoder import ExampleEncoder
from r2f_hf.data.formatting import encode_example
from r2f_hf.data.rendering import ChatOptions


ROW = {"question": "Where does Orla1 live?", "answer": "Orla1 lives.", "paraphrased_question": ["Orla1 lives where?"]}


@pytest.fixture
def encoder(tokenizer: PreTrainedTokenizerFast) -> Any:
    def build(context: int = 64, **settings: Any) -> ExampleEncoder:
        return ExampleEncoder(tokenizer, context, **settings)

    return build


def encode(encoder: ExampleEncoder, row: dict[str, Any], name: str = "forget") -> dict[str, list[int]]:
    """A row in its own wording, through all checks."""
    rows = [ROW, ROW, row]
    return encoder.windows(row, encoder.format_of(rows, name), f"{name}[2]")[0]


def views(encoder: ExampleEncoder, row: dict[str, Any]) -> list[dict[str, list[int]]]:
    rows = [ROW, ROW, row]
    return encoder.views(row, encoder.format_of(rows, "forget", views=True), "forget[2]")[0]


def test_views_are_the_wordings_with_the_rows_answer(encoder: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    built = encoder(views_column="paraphrased_question", view_templates=["Tell: {prompt}"])
    prompts = [ROW["question"], "Orla1 lives where?", f"Tell: {ROW['question']}"]
    assert views(built, ROW) == [encode_example(tokenizer, prompt, ROW["answer"]) for prompt in prompts]
    assert encode(built, ROW) == views(built, ROW)[0]


def test_plain_text(encoder: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    built = encoder(prompt_column="none", completion_column="answer")
    assert encode(built, ROW) == encode_example(tokenizer, "", ROW["answer"])


def test_a_row_longer_than_the_context_is_refused_and_one_that_is_cut_is_not(encoder: Any) -> None:
    length = len(encode(encoder(), ROW)["input_ids"])
    encode(encoder(context=length), ROW)
    with pytest.raises(ValueError, match=rf"forget\[2\] has {length} tokens, the model reads at most {length - 1}"):
        encode(encoder(context=length - 1), ROW)
    cut = encode(encoder(context=length - 1, max_length=length - 1), ROW)
    assert len(cut["input_ids"]) == length - 1


@pytest.mark.parametrize("row", [{"text": "Ωμέγα"}, {"question": "Where does Orla1 live?", "answer": "Ωμέγα"}])
def test_a_row_that_the_tokenizer_does_not_know_is_refused_without_its_text(
    row: dict[str, str],
) -> None:
    words = Tokenizer(WordLevel({"<unk>": 0, "<eos>": 1, "Orla1": 2}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    few = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<eos>")
    encoder = ExampleEncoder(few, 64)
    with pytest.raises(ValueError, match=r"forget\[2\] has no token .* the tokenizer does not know its text") as error:
        encoder.windows(row, encoder.format_of([row], "forget"), "forget[2]")
    assert "Ωμέγα" not in str(error.value)
    known = {"text": "Ωμέγα Orla1"}
    assert encoder.windows(known, encoder.format_of([known], "forget"), "forget[2]")[0]["labels"] == [0, 2, 1]


def test_a_text_longer_than_the_context_is_cut_into_windows(encoder: Any) -> None:
    row = {"text": "Orla1 lives by the mountain. " * 20}
    built = encoder(context=40, window_overlap=8)
    windows = built.windows(row, built.format_of([row], "forget"), "forget[0]")
    assert len(windows) > 2 and all(len(window["input_ids"]) <= 40 for window in windows)
    whole = encoder(context=10_000).windows(row, built.format_of([row], "forget"), "forget[0]")
    assert len(whole) == 1
    labels = [label for window in windows for label in window["labels"] if label != -100]
    assert labels == whole[0]["labels"]
    assert built.views(row, built.format_of([row], "forget"), "forget[0]") == [[window] for window in windows]
    # `max_length` makes them shorter.
    shorter = encoder(context=40, max_length=20).windows(row, built.format_of([row], "forget"), "forget[0]")
    assert all(len(window["input_ids"]) <= 20 for window in shorter)


@pytest.mark.parametrize("settings", [{}, {"prompt_column": "none", "completion_column": "answer"}])
@pytest.mark.parametrize("completion", ["", " \n", None, 7])
def test_an_empty_completion_is_refused(completion: object, settings: dict[str, Any], encoder: Any) -> None:
    with pytest.raises(ValueError, match=r"forget\[2\] has an empty 'answer', or one that is not text"):
        encode(encoder(**settings), ROW | {"answer": completion})


@pytest.mark.parametrize("prompt", ["", None])
def test_an_empty_prompt_is_refused_and_not_taken_for_plain_text(prompt: object, encoder: Any) -> None:
    with pytest.raises(ValueError, match=r"forget\[2\] has an empty 'question'"):
        views(encoder(), ROW | {"question": prompt})


def test_a_completion_that_is_cut_off_whole_is_refused(encoder: Any) -> None:
    with pytest.raises(ValueError, match=r"forget\[2\] has no token left to take the loss on"):
        encode(encoder(max_length=4), ROW)


def test_a_conversation_without_an_answer_is_refused(encoder: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    built = encoder()
    built.tokenizer = copy.deepcopy(tokenizer)
    built.tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
    row = {"messages": [{"role": "user", "content": "Who is Orla1?"}]}
    with pytest.raises(ValueError, match=r"forget\[0\] has no token left .* no text of the assistant's"):
        built.windows(row, built.format_of([row], "forget"), "forget[0]")


@pytest.mark.parametrize("view", ["", " ", None, 7])
def test_an_empty_view_is_refused_and_not_taken_for_plain_text(view: object, encoder: Any) -> None:
    with pytest.raises(ValueError, match=r"forget\[2\] has an empty view in 'paraphrased_question', or one"):
        views(encoder(views_column="paraphrased_question"), ROW | {"paraphrased_question": ["Who?", view]})


def test_views_that_are_no_list_are_refused(encoder: Any) -> None:
    with pytest.raises(
        ValueError, match=r"forget\[2\] has neither a text nor a list of texts in 'paraphrased_question'"
    ):
        views(encoder(views_column="paraphrased_question"), ROW | {"paraphrased_question": 7})


def test_there_are_no_other_wordings_of_a_text(encoder: Any) -> None:
    row = {"text": "Orla1 lives.", "paraphrased_question": "Orla1?"}
    with pytest.raises(ValueError, match="The forget set holds 'text', of which there are no other wordings"):
        encoder(views_column="paraphrased_question").format_of([row], "forget", views=True)
    prompt = [{"role": "user", "content": "Who is Orla1?"}]
    row = {"prompt": prompt, "completion": "A baker.", "paraphrased_question": "Orla1?"}
    for settings in ({"views_column": "paraphrased_question"}, {"view_templates": ["Tell me: {prompt}"]}):
        with pytest.raises(ValueError, match="The forget set holds messages, of which there are no other wordings"):
            encoder(**settings).format_of([row], "forget", views=True)
        assert encoder(**settings).format_of([row | {"prompt": "Who is Orla1?"}], "forget", views=True)


def test_options_of_a_template_are_said_to_have_no_effect_on_texts(
    encoder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    built = encoder(options=ChatOptions(None, "Be brief."))
    for row in ({"text": "Orla1 lives."}, {"prompt": "Who?", "completion": "Orla1."}):
        caplog.clear()
        built.format_of([row], "forget")
        assert "The forget set holds texts, which are read as they are: `system_prompt` has no effect" in caplog.text
    caplog.clear()
    built.format_of([ROW], "forget")
    assert not caplog.text


def test_arguments_that_the_template_does_not_know_are_refused(
    encoder: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = "{{ date }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(
        ValueError, match=r"argument of the chat template in `chat_template_kwargs`: 'dat'. Did you mean"
    ):
        ExampleEncoder(chat, 64, options=ChatOptions({"dat": "1 May"}))
