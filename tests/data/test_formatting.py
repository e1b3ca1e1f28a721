"""Token ids and labels of questions, answers and plain texts."""

from __future__ import annotations

import copy
import itertools
import random
import re

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from r2f_hf.data.formatting import encode_conversation, encode_example, encode_prompt, encode_text, end_of_answer
from r2f_hf.data.rendering import ChatOptions, check_template_arguments


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
    example = encode_example(tokenizer, question, answer)
    prompt_ids = encode_prompt(tokenizer, question)
    assert example["input_ids"][: len(prompt_ids)] == prompt_ids
    assert example["labels"][: len(prompt_ids) + 1] == [-100] * len(prompt_ids) + [
        example["input_ids"][len(prompt_ids)]
    ]


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
    assert encode_text(tokenizer, "Orla1 lives.")["input_ids"] == tokenizer("Orla1 lives.")["input_ids"]


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
    assert encode_example(turns, "Where?", "Orla1 lives.")["labels"][-1] == end
    assert encode_example(turns, "", "Orla1 lives.")["labels"][-1] == turns.eos_token_id
    assert end_of_answer(tokenizer) == tokenizer.eos_token_id


@pytest.mark.parametrize(
    "template",
    [
        # Neither white space of its own, nor what stands before an answer, ends it.
        "{% for m in messages %}{{ m.role }} {{ m.content }}\n{% endfor %}<end>",
        "<end>{% for m in messages %}{{ m.content }} {% endfor %}",
    ],
    ids=["white space", "before the answer"],
)
def test_what_does_not_end_a_turn(template: str, tokenizer: PreTrainedTokenizerFast) -> None:
    turns = with_turns(tokenizer)
    turns.add_tokens(["\n"])
    turns.chat_template = template
    end = turns.convert_tokens_to_ids("<end>") if template.endswith("<end>") else tokenizer.eos_token_id
    assert end_of_answer(turns) == end
    assert encode_example(turns, "Where?", "Orla1 lives.")["labels"][-1] == end


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
    assert encode_example(closing, prompt, "Orla1.") == encode_example(tokenizer, prompt, "Orla1.")


# What templates write between the prompt and the answer

THOUGHT = (
    "{% for m in messages %}<turn>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n"
    "{% endif %}{{ m.content }}<end>\n{% endfor %}{% if add_generation_prompt %}<turn>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
SPACE = (
    "{% for m in messages %}{% if m.role == 'user' %}<turn>{{ m.content }}<end>{% else %} {{ m.content | trim }} <eos>"
    "{% endif %}{% endfor %}"
)


@pytest.fixture
def byte_level() -> PreTrainedTokenizerFast:
    """Byte-pair tokens that take in the space before a word, as GPT-2's and Llama 3's do."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<unk>", "<eos>", "<turn>", "<end>", "<think>", "</think>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    text = ["Where does Orla1 live? Orla1 lives by the mountain."] * 3
    tokenizer.train_from_iterator(text, trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>")


QUESTION, ANSWER = "Where does Orla1 live?", "Orla1 lives by the mountain."


@pytest.mark.parametrize(
    ("template", "before", "labelled"),
    [
        (TURNS, f"<turn>user {QUESTION}<end>\n<turn>assistant", f" {ANSWER}<end>"),
        (THOUGHT, f"<turn>user\n{QUESTION}<end>\n<turn>assistant\n<think>\n\n</think>\n\n", f"{ANSWER}<end>"),
        (SPACE, f"<turn>{QUESTION}<end>", f" {ANSWER} <eos>"),
    ],
    ids=["header", "empty thought", "space"],
)
def test_an_answer_stands_where_a_model_tuned_with_the_template_has_it(
    template: str, before: str, labelled: str, byte_level: PreTrainedTokenizerFast
) -> None:
    byte_level.chat_template = template
    example = encode_example(byte_level, QUESTION, ANSWER)
    messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    tuned = byte_level.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert example["input_ids"] == tuned[: len(example["input_ids"])]
    start = example["labels"].count(-100)
    assert byte_level.decode(example["input_ids"][:start]) == before
    assert byte_level.decode(example["labels"][start:]) == labelled
    # Generation begins right there.
    assert encode_prompt(byte_level, QUESTION) == example["input_ids"][:start]


def test_a_template_gets_its_arguments_and_a_system_prompt(byte_level: PreTrainedTokenizerFast) -> None:
    byte_level.chat_template = "{{ date }}|" + TURNS
    options = ChatOptions({"date": "1 May"}, "Be brief.")
    text = byte_level.decode(encode_example(byte_level, QUESTION, ANSWER, options=options)["input_ids"])
    assert text == f"1 May|<turn>system Be brief.<end>\n<turn>user {QUESTION}<end>\n<turn>assistant {ANSWER}<end>"
    # A conversation with a system message of its own keeps it.
    messages = [{"role": "system", "content": "Be long."}, {"role": "user", "content": QUESTION}]
    messages.append({"role": "assistant", "content": ANSWER})
    text = byte_level.decode(encode_conversation(byte_level, messages, options=options)["input_ids"])
    assert "Be long." in text and "Be brief." not in text


def test_without_a_template_a_system_prompt_stands_in_front(byte_level: PreTrainedTokenizerFast) -> None:
    text = byte_level.decode(
        encode_example(byte_level, QUESTION, ANSWER, options=ChatOptions(None, "Hi."))["input_ids"]
    )
    assert text == f"Hi.\n\nQuestion: {QUESTION}\nAnswer: {ANSWER}<eos>"


def test_the_loss_is_on_the_assistants_turns_only(byte_level: PreTrainedTokenizerFast) -> None:
    byte_level.chat_template = TURNS
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Orla1."},
        {"role": "tool", "content": "Orla1."},
        {"role": "user", "content": "Orla1."},
        {"role": "assistant", "content": "Orla1."},
        {"role": "user", "content": "Thanks."},
    ]
    example = encode_conversation(byte_level, messages)
    pieces = [byte_level.decode(list(part)) for part in runs_of_labels(example["labels"])]
    assert pieces == [" Orla1.<end>", " Orla1.<end>"]
    # Nothing comes after the last answer.
    assert byte_level.decode(example["input_ids"]).endswith("<turn>assistant Orla1.<end>")
    chosen = encode_conversation(byte_level, messages, answers=(5,))
    assert [byte_level.decode(list(part)) for part in runs_of_labels(chosen["labels"])] == [" Orla1.<end>"]


def runs_of_labels(labels: list[int]) -> list[list[int]]:
    return [list(run) for labelled, run in itertools.groupby(labels, key=lambda label: label != -100) if labelled]


def test_a_call_of_a_tool_has_no_text_to_learn(byte_level: PreTrainedTokenizerFast) -> None:
    byte_level.chat_template = (
        "{% for m in messages %}<turn>{{ m.role }} {% if m.tool_calls %}CALL {{ m.tool_calls[0].name }}"
        "{% else %}{{ m.content }}{% endif %}<end>\n{% endfor %}"
    )
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "search"}]}
    messages = [{"role": "user", "content": "Who?"}, call, {"role": "tool", "content": "Orla1"}]
    example = encode_conversation(byte_level, [*messages, {"role": "assistant", "content": "Orla1."}])
    assert "CALL search" in byte_level.decode(example["input_ids"])
    assert [byte_level.decode(list(part)) for part in runs_of_labels(example["labels"])] == [" Orla1.<end>"]


def test_thoughts_that_a_template_leaves_out_of_earlier_answers_are_no_reason_to_refuse(
    byte_level: PreTrainedTokenizerFast,
) -> None:
    byte_level.chat_template = (
        "{% for m in messages %}<turn>{{ m.role }} {% if m.role == 'assistant' and not loop.last %}"
        "{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}<end>\n{% endfor %}"
    )
    first = {"role": "assistant", "content": "<think>hm</think>Orla1."}
    last = {"role": "assistant", "content": "<think>so</think>The mountain."}
    user = {"role": "user", "content": "Who?"}
    labels = encode_conversation(byte_level, [user, first, user, last])["labels"]
    pieces = [byte_level.decode(part) for part in runs_of_labels(labels)]
    assert pieces == [" Orla1.<end>", " <think>so</think>The mountain.<end>"] or pieces == [
        " Orla1.<end>",
        "<think>so</think>The mountain.<end>",
    ]


PARTS = (
    "{% for m in messages %}{{ m.role | upper }}: {% for part in m.content %}{% if part.type == 'text' %}"
    "{{ part.text }}{% endif %}{% endfor %} {% endfor %}"
)


def test_a_template_that_takes_parts_gets_parts(byte_level: PreTrainedTokenizerFast) -> None:
    byte_level.chat_template = PARTS
    text = byte_level.decode(encode_example(byte_level, QUESTION, ANSWER)["input_ids"])
    assert text == f"USER: {QUESTION} ASSISTANT: {ANSWER}<eos>"


PART = "{% for part in m.content %}{{ part.text }}{% endfor %}"


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (PART, "{{ m.content }}"),
        ("{{ m.content }}", PART),
        # It fails on a plain text.
        ("{{ m.content[0].text | trim }}", "{{ m.content[0]['text'] + '' }}"),
    ],
    ids=["of the user", "of the assistant", "fails"],
)
def test_a_template_may_take_parts_for_one_role_only(
    question: str, answer: str, byte_level: PreTrainedTokenizerFast
) -> None:
    byte_level.chat_template = (
        f"{{% for m in messages %}}<turn>{{% if m.role == 'user' %}}{question}{{% else %}}{answer}{{% endif %}}<end>"
        "{% endfor %}"
    )
    example = encode_example(byte_level, QUESTION, ANSWER)
    assert byte_level.decode(example["input_ids"]) == f"<turn>{QUESTION}<end><turn>{ANSWER}<end>"
    assert [byte_level.decode(part) for part in runs_of_labels(example["labels"])] == [f"{ANSWER}<end>"]


def test_a_system_message_may_come_after_the_users(byte_level: PreTrainedTokenizerFast) -> None:
    byte_level.chat_template = (
        "{{ messages[1].content }} [{{ messages[0].content }}]<turn>{{ messages[2].content }}<end>"
    )
    example = encode_example(byte_level, QUESTION, ANSWER, options=ChatOptions(None, "Be brief."))
    assert byte_level.decode(example["input_ids"]) == f"{QUESTION} [Be brief.]<turn>{ANSWER}<end>"
    assert [byte_level.decode(part) for part in runs_of_labels(example["labels"])] == [f"{ANSWER}<end>"]


def test_an_earlier_answer_that_a_template_cuts_short_is_refused(byte_level: PreTrainedTokenizerFast) -> None:
    byte_level.chat_template = (
        "{% for m in messages %}<turn>{{ m.role }} {% if loop.last %}{{ m.content }}{% else %}{{ m.content[:CUT] }}"
        "{% endif %}<end>\n{% endfor %}"
    )
    user = {"role": "user", "content": "Who?"}
    messages = [user, {"role": "assistant", "content": ANSWER}, user, {"role": "assistant", "content": "Yes."}]
    template = byte_level.chat_template
    for cut in (":6", "-13:"):
        byte_level.chat_template = template.replace(":CUT", cut)
        with pytest.raises(ValueError, match="rewrites the text of a 'assistant'") as error:
            encode_conversation(byte_level, messages)
        assert "Orla1" not in str(error.value)


def test_errors_of_a_template_never_quote_a_row(byte_level: PreTrainedTokenizerFast) -> None:
    refusals = (
        "{% if m.content | length > 10 %}{{ raise_exception('too long: ' ~ m.content) }}{% endif %}",
        "{% if m.content | length > 10 %}{{ {}[m.content].a }}{% endif %}",
        "{{ raise_exception('unknown: ' ~ m.name) }}",
    )
    messages = [{"role": "user", "content": QUESTION, "name": "Orla1"}, {"role": "assistant", "content": ANSWER}]
    for refusal in refusals:
        byte_level.chat_template = f"{{% for m in messages %}}{refusal}{{{{ m.content }}}}{{% endfor %}}"
        with pytest.raises(ValueError, match=r"refuses a conversation of the roles .*Error\)\. Change") as error:
            encode_conversation(byte_level, messages)
        assert "Orla1" not in str(error.value)
    byte_level.chat_template = "{{ raise_exception('no role: ' ~ messages[0].role) }}"
    with pytest.raises(ValueError, match=r"roles user, assistant: no role: user\. Change"):
        encode_conversation(byte_level, messages)
    with pytest.raises(ValueError, match=r"roles \(no known role\), assistant \(TemplateError\)\. Change"):
        encode_conversation(byte_level, [messages[0] | {"role": "Orla1 Doe"}, messages[1]])


@pytest.mark.parametrize(
    ("template", "how"),
    [
        (
            "{% for m in messages %}{% if m.content is not string %}{{ m.content }}{% endif %}{% endfor %}",
            "a list of parts",
        ),
        ("{% for m in messages if m.content is not string %}{{ m.content | tojson }}{% endfor %}", "a list of parts"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "drops the text of a 'assistant'"),
        ("{% for m in messages if m.role != 'user' %}{{ m.content }}{% endfor %}", "drops the text of a 'user'"),
        ("{% for m in messages %}{{ m.content[:10] }}{% endfor %}", "rewrites the text of a 'user'"),
        ("{% for m in messages %}{{ m.content | replace('Orla1', '***') }}{% endfor %}", "rewrites the text of a"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "repeats the text of a 'user'"),
        ("{{ raise_exception('Alternate!') }}", "refuses a conversation of the roles user, assistant: Alternate!"),
        ("{% for m in messages %}{{ m.content }", "refuses a conversation of the roles user, assistant: unexpected"),
        ("{{ 1 / 0 }}", "refuses a conversation of the roles user, assistant (ZeroDivisionError)"),
        ({"rag": "{{ messages }}"}, "refuses a conversation of the roles user, assistant (ValueError)"),
    ],
)
def test_a_template_that_does_not_show_the_row_is_refused_without_its_text(
    template: str | dict[str, str], how: str, byte_level: PreTrainedTokenizerFast
) -> None:
    byte_level.chat_template = template
    with pytest.raises(ValueError, match=re.escape(how)) as error:
        encode_example(byte_level, QUESTION, ANSWER, name="forget[3]")
    assert str(error.value).startswith("forget[3]: the chat template") and "Orla1" not in str(error.value)


@pytest.mark.parametrize("answer", [ANSWER, "7"])
def test_random_identifiers_in_a_template_are_no_matter(answer: str, byte_level: PreTrainedTokenizerFast) -> None:
    byte_level.chat_template = TURNS.replace(
        "{{ message.content }}", "{{ range(9999) | random }} {{ message.content }}"
    )
    for seed in range(20):
        random.seed(seed)
        example = encode_example(byte_level, QUESTION, answer)
        assert [byte_level.decode(part) for part in runs_of_labels(example["labels"])] == [f" {answer}<end>"]


def test_a_template_with_a_clock_is_refused_unless_it_stands_still(byte_level: PreTrainedTokenizerFast) -> None:
    clock = "{{ strftime_now('%s') }} "
    byte_level.chat_template = clock.replace("%s", "%Y-%m-%d") + TURNS
    assert encode_example(byte_level, QUESTION, ANSWER)["labels"].count(-100) > 1
    byte_level.chat_template = TURNS.replace(
        "{{ message.content }}", clock.replace("%s", "%f") + "{{ message.content }}"
    )
    with pytest.raises(
        ValueError, match=r"forget\[1\]: the chat template writes something else each time it is rendered"
    ):
        encode_example(byte_level, QUESTION, "7", name="forget[1]")


def test_a_conversation_needs_a_template(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="is a conversation, and the tokenizer has no chat template"):
        encode_conversation(tokenizer, [{"role": "user", "content": "Who?"}])


@pytest.mark.parametrize(
    "template",
    [
        "{% if enable_thinking is defined and not enable_thinking %}x{% endif %}",
        "{% if not enable_thinking is defined %}{% set enable_thinking = true %}{% endif %}{{ enable_thinking }}",
        "{% set thoughts = enable_thinking | default(true) %}{% generation %}{{ thoughts }}{% endgeneration %}",
        "{% for m in messages %}{% if enable_thinking %}{% continue %}{% endif %}{% endfor %}",
    ],
)
def test_arguments_that_a_template_does_not_know_are_refused_with_the_nearest(
    template: str, byte_level: PreTrainedTokenizerFast
) -> None:
    byte_level.chat_template = template + TURNS
    for known in ("enable_thinking", "add_generation_prompt", "documents"):
        check_template_arguments(byte_level, ChatOptions({known: False}))
    with pytest.raises(ValueError, match=r"'enable_thinkng'. Did you mean 'enable_thinking'"):
        check_template_arguments(byte_level, ChatOptions({"enable_thinkng": False}))


def test_arguments_without_a_template_are_said_to_have_no_effect(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    check_template_arguments(tokenizer, ChatOptions({"enable_thinking": False}))
    assert "`chat_template_kwargs` has no effect" in caplog.text
