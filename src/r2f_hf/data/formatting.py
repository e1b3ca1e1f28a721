"""From conversations, questions with answers, and texts to token ids and labels: one format for all that R2F does."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from .rendering import ChatOptions, Message, locate_texts, with_system_prompt


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN_PROMPT = "Question: {prompt}\nAnswer:"
IGNORE_INDEX = -100

Encoded = dict[str, Any]


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    answers: Collection[int] | None = None,
    options: ChatOptions | None = None,
    tools: Sequence[Any] | None = None,
    max_length: int | None = None,
    name: str = "a conversation",
) -> Encoded:
    """
    Input ids and labels of a conversation. The loss is taken on the assistant's texts, each up to the token that ends
    its turn.

    Prompt and answers come from one rendering of the whole conversation, so that an answer stands exactly where a
    model that was tuned with the template has it. What comes after the last answer is left out.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model, with a chat template.
        messages (`Sequence[Mapping]`):
            Messages with `role` and `content`, the system's and tools' included.
        answers (`Collection[int]`, *optional*):
            Which messages the loss is taken on. Defaults to all of the assistant's that have a text.
        options ([`ChatOptions`], *optional*):
            Arguments of the template, and a system prompt.
        tools (`Sequence`, *optional*):
            Tools that the template describes.
        max_length (`int`, *optional*):
            Tokens to keep; longer conversations are cut on the right.
        name (`str`, *optional*):
            What an error calls the conversation.

    Returns:
        `dict[str, list[int]]`: `input_ids` and `labels` of the same length; -100 in `labels` where no loss is taken.

    Raises:
        `ValueError`: If the tokenizer has no chat template, or its template drops or rewrites a text.
    """
    if tokenizer.chat_template is None:
        raise ValueError(
            f"{name} is a conversation, and the tokenizer has no chat template. Set `tokenizer.chat_template`, or "
            "give the rows as `prompt` and `completion`."
        )
    options = options or ChatOptions()
    count = len(messages)
    messages = with_system_prompt(messages, options.system_prompt)
    shift = len(messages) - count
    text, spans = locate_texts(tokenizer, messages, options, tools, name)
    if answers is None:
        chosen = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    else:
        chosen = [index + shift for index in answers]
    ids, offsets, words = _tokens(tokenizer, text)
    labels = [IGNORE_INDEX] * len(ids)
    stop = 0
    starts = [span[0] for span in spans if span is not None]
    for span in sorted(spans[index] for index in chosen if spans[index] is not None):
        start = span[0]
        limit = min((other for other in starts if other > start), default=len(text))
        first = _first_token(offsets, words, len(text[:start].rstrip()), start)
        stop, ended = _turn_end(tokenizer, ids, offsets, span[1], limit)
        labels[first:stop] = ids[first:stop]
    ids, labels = ids[:stop], labels[:stop]
    if stop and not ended and tokenizer.eos_token_id is not None:
        # The template ends a turn with no token of its own.
        ids, labels = [*ids, tokenizer.eos_token_id], [*labels, tokenizer.eos_token_id]
    return {"input_ids": ids[:max_length], "labels": labels[:max_length]}


def _tokens(
    tokenizer: PreTrainedTokenizerBase, text: str
) -> tuple[list[int], list[tuple[int, int]], Sequence[int | None]]:
    """Token ids of a rendered text, where each token begins and ends in it, and which word each is a part of."""
    if tokenizer.is_fast:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return encoded["input_ids"], encoded["offset_mapping"], encoded.word_ids()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    # A tokenizer in Python does not say where its tokens stand: they are read one after the other.
    ends = [len(tokenizer.decode(ids[: index + 1], clean_up_tokenization_spaces=False)) for index in range(len(ids))]
    return ids, list(zip([0, *ends[:-1]], ends, strict=True)), range(len(ids))


def _first_token(offsets: list[tuple[int, int]], words: Sequence[int | None], space: int, start: int) -> int:
    """
    The first token of an answer that begins at `start`, after white space that begins at `space`.

    A space before a word is a part of it: whether the two are one token or several depends on the word, and the prompt
    must not. So the space belongs to the answer where the tokenizer keeps the two together.
    """
    first = next(index for index, (_, stop) in enumerate(offsets) if stop > start)
    while first and offsets[first - 1][0] >= space and words[first - 1] == words[first] is not None:
        first -= 1
    return first


def _turn_end(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], offsets: list[tuple[int, int]], end: int, limit: int
) -> tuple[int, bool]:
    """
    Where a turn ends.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.
        ids (`list[int]`):
            Tokens of the rendered conversation.
        offsets (`list[tuple[int, int]]`):
            Where each begins and ends in the text.
        end (`int`):
            Where the answer ends in the text.
        limit (`int`):
            Where the next message's text begins.

    Returns:
        `tuple[int, bool]`: The token after the last of the turn, and whether a token of its own ends it.
    """
    after = next((index for index, (start, _) in enumerate(offsets) if start >= end), len(ids))
    for index in range(after, len(ids)):
        if offsets[index][0] >= limit:
            break
        if ends_turn(tokenizer, ids[index]):
            return index + 1, True
    return after, False


def ends_turn(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    """Whether a token can end a turn: one of its own, and not white space, of which some tokenizers add runs."""
    if token == tokenizer.eos_token_id:
        return True
    return token in tokenizer.get_added_vocab().values() and bool(tokenizer.decode([token]).strip())


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str, options: ChatOptions | None = None, name: str = "a prompt"
) -> list[int]:
    """
    Token ids of a prompt, ready for an answer to follow: those that precede the answer in [`encode_example`].

    The tokenizer's chat template is used where it has one (as a single user turn), otherwise the plain
    `Question: ... Answer:` form of the TOFU benchmark. An empty prompt is plain text: only the special tokens that
    the tokenizer puts in front of a text are returned.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model.
        prompt (`str`):
            The question, without any template; `""` for plain text.
        options ([`ChatOptions`], *optional*):
            Arguments of the template, and a system prompt.
        name (`str`, *optional*):
            What an error calls the prompt.

    Returns:
        `list[int]`: Token ids.

    Raises:
        `ValueError`: If the chat template drops or rewrites the prompt.
    """
    if prompt and tokenizer.chat_template is not None:
        example = encode_example(tokenizer, prompt, "Xqaz", options=options, name=name)
        return example["input_ids"][: answer_start(example)]
    return encode_opening(tokenizer, prompt and _plain_prompt(prompt, options))


def _plain_prompt(prompt: str, options: ChatOptions | None) -> str:
    text = PLAIN_PROMPT.format(prompt=prompt)
    return text if options is None or options.system_prompt is None else f"{options.system_prompt}\n\n{text}"


def encode_opening(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """
    Token ids of a text with the special tokens in front of it, and not those that close it.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model.
        text (`str`):
            The text, as it is; it may be empty.

    Returns:
        `list[int]`: Token ids.
    """
    ids = tokenizer(text)["input_ids"]
    closes = tokenizer("a")["input_ids"][-1:] == [tokenizer.eos_token_id]
    return ids[:-1] if closes else ids


def answer_start(example: Encoded) -> int:
    """The first token of an example that carries a label."""
    return next(index for index, label in enumerate(example["labels"]) if label != IGNORE_INDEX)


def end_of_answer(tokenizer: PreTrainedTokenizerBase, options: ChatOptions | None = None) -> int | None:
    """
    The token that closes an answer: the one that follows it in the chat template, which need not be the tokenizer's
    end-of-sequence token (Gemma's is `<end_of_turn>`), and otherwise that token.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model.
        options ([`ChatOptions`], *optional*):
            Arguments of the template, and a system prompt.

    Returns:
        `int`, *optional*: Token id; `None` if the tokenizer has neither.
    """
    if tokenizer.chat_template is None:
        return tokenizer.eos_token_id
    last = encode_example(tokenizer, "Xqbz", "Xqaz", options=options)["labels"][-1]
    return last if ends_turn(tokenizer, last) else None


def encode_text(
    tokenizer: PreTrainedTokenizerBase, text: str, prompt: str = "", max_length: int | None = None
) -> Encoded:
    """
    Input ids and labels of a text as it is, or of its continuation of a prompt. No template is used.

    The continuation is tokenized on its own, and closed by the end-of-sequence token.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model.
        text (`str`):
            The text; every token of it carries a label.
        prompt (`str`, *optional*, defaults to `""`):
            What stands before it; its tokens carry none.
        max_length (`int`, *optional*):
            Tokens to keep; longer texts are cut on the right.

    Returns:
        `dict[str, list[int]]`: `input_ids` and `labels` of the same length.
    """
    prompt_ids = encode_opening(tokenizer, prompt)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if tokenizer.eos_token_id is not None:
        ids = [*ids, tokenizer.eos_token_id]
    labels = [IGNORE_INDEX] * len(prompt_ids) + ids
    return {"input_ids": (prompt_ids + ids)[:max_length], "labels": labels[:max_length]}


def encode_example(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    completion: str,
    max_length: int | None = None,
    options: ChatOptions | None = None,
    name: str = "a row",
) -> Encoded:
    """
    Input ids and labels of a question and its answer; the loss is taken on the answer and on the token that ends it.

    The tokenizer's chat template is used where it has one, otherwise the plain `Question: ... Answer: ...` form of the
    TOFU benchmark.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model.
        prompt (`str`):
            The question; `""` for plain text, whose every token then carries a label.
        completion (`str`):
            The answer, or the text.
        max_length (`int`, *optional*):
            Tokens to keep; longer examples are cut on the right.
        options ([`ChatOptions`], *optional*):
            Arguments of the template, and a system prompt.
        name (`str`, *optional*):
            What an error calls the row.

    Returns:
        `dict[str, list[int]]`: `input_ids` and `labels` of the same length; prompt positions hold -100 in `labels`.

    Raises:
        `ValueError`: If the chat template drops or rewrites the question or the answer.
    """
    if not prompt:
        return encode_text(tokenizer, completion, "", max_length)
    if tokenizer.chat_template is None:
        return encode_text(tokenizer, " " + completion, _plain_prompt(prompt, options), max_length)
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    return encode_conversation(tokenizer, messages, (1,), options, None, max_length, name)
