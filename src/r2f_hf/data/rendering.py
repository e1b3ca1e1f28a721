"""One rendering of a whole conversation by the chat template, and where in it each message's text stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]
Span = tuple[int, int]


class ChatOptions(NamedTuple):
    """
    What a chat template is given besides the conversation.

    Args:
        template_kwargs (`Mapping[str, Any]`, *optional*):
            Arguments of the template, such as `{"enable_thinking": False}` or `{"date_string": "01 Jan 2025"}`.
        system_prompt (`str`, *optional*):
            Text of a system message, put in front of conversations that have none.
    """

    template_kwargs: Mapping[str, Any] | None = None
    system_prompt: str | None = None


def with_system_prompt(messages: Sequence[Message], system_prompt: str | None) -> list[Message]:
    """The messages with the system prompt in front, unless they have a system message already."""
    if system_prompt is None or (messages and messages[0]["role"] == "system"):
        return list(messages)
    return [{"role": "system", "content": system_prompt}, *messages]


def locate_texts(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    options: ChatOptions | None = None,
    tools: Sequence[Any] | None = None,
    name: str = "a conversation",
) -> tuple[str, list[Span | None]]:
    """
    Render a conversation, and find the text of each message in the result.

    The conversation is rendered twice: as it is, and with a word of its own in place of each text. The second shows
    what the template itself writes between the texts. So an answer is found where the template puts it, after an empty
    thought or a space, even if the same words stand elsewhere too.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            A tokenizer with a chat template.
        messages (`Sequence[Mapping]`):
            Messages with `role` and `content`.
        options ([`ChatOptions`], *optional*):
            Arguments of the template.
        tools (`Sequence`, *optional*):
            Tools that the template describes.
        name (`str`, *optional*):
            What an error calls the conversation.

    Returns:
        `tuple[str, list[tuple[int, int] | None]]`: The text, and for each message where its text begins and ends;
        `None` for a message without text, such as a call of a tool.

    Raises:
        `ValueError`: If the template refuses the conversation, or drops or rewrites the text of a message.
    """
    texts = [text_of(message) for message in messages]
    words = [None if text is None else f"Xq{index}zqX" for index, text in enumerate(texts)]
    render = _Renderer(tokenizer, options or ChatOptions(), tools, name)
    marked = render([_with_text(message, word) for message, word in zip(messages, words, strict=True)])
    as_parts = any(word is not None and word not in marked for word in words)
    if as_parts:
        # Templates of vision-language models take a list of parts, and pass a plain text over.
        marked = render([_with_text(message, word, True) for message, word in zip(messages, words, strict=True)])
    for message, word in zip(messages, words, strict=True):
        if word is not None and marked.count(word) != 1:
            how = "drops" if word not in marked else "repeats"
            raise ValueError(
                f"{name}: the chat template {how} the text of a {message['role']!r} message, so the model would not "
                "see the row as it is. Choose a tokenizer with another `chat_template`, or set one."
            )
    whole = render([_with_text(message, text, as_parts) for message, text in zip(messages, texts, strict=True)])
    spans: list[Span | None] = []
    end, marked_end = 0, 0
    last = max((index for index, text in enumerate(texts) if text is not None), default=-1)
    for index, (message, word, text) in enumerate(zip(messages, words, texts, strict=True)):
        if word is None or text is None:
            spans.append(None)
            continue
        start = marked.index(word, marked_end)
        before = marked[marked_end:start]
        marked_end = start + len(word)
        after = _literal_after(marked, marked_end, words[index + 1 :])
        span = _find(whole, end, before, text, after, may_be_part=message["role"] == "assistant" and index < last)
        if span is None:
            raise ValueError(
                f"{name}: the chat template rewrites the text of a {message['role']!r} message, so the model would "
                "not see the row as it is. Choose a tokenizer with another `chat_template`, or set one."
            )
        spans.append(span)
        end = span[1]
    return whole, spans


def text_of(message: Message) -> str | None:
    """The text of a message: its content, or the text of its parts; `None` where there is none."""
    content = message.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = "".join(part["text"] for part in content if part.get("type") == "text") or None
    return content or None


class _Renderer:
    """Renders messages by a tokenizer's template, and says which row it refuses."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, options: ChatOptions, tools: Sequence[Any] | None, name: str
    ):
        self.tokenizer, self.tools, self.name = tokenizer, tools, name
        self.kwargs = dict(options.template_kwargs or {})

    def __call__(self, messages: Sequence[Message]) -> str:
        # jinja2 is there wherever a chat template can be rendered.
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template(messages, tools=self.tools, tokenize=False, **self.kwargs)
        except Exception as error:
            # A template is a program of the user's, which can fail in any way.
            roles = ", ".join(str(message["role"]) for message in messages)
            # The template's own words are safe to show: they know roles, not texts. Python's may quote a text.
            said = f": {error}" if isinstance(error, TemplateError) else f" ({type(error).__name__})"
            raise ValueError(
                f"{self.name}: the chat template refuses a conversation of the roles {roles}{said}. Change the rows "
                "or the tokenizer's `chat_template`. If it refuses the system message or an argument, leave "
                "`system_prompt` or `chat_template_kwargs` out."
            ) from None


def _with_text(message: Message, text: str | None, as_part: bool = False) -> dict[str, Any]:
    if text is None:
        return dict(message)
    return {**message, "content": [{"type": "text", "text": text}] if as_part else text}


def _literal_after(marked: str, start: int, following: Sequence[str | None]) -> str:
    """What the template writes from a place up to the next message's word, or to the end."""
    later = [marked.index(word, start) for word in following if word is not None and word in marked[start:]]
    return marked[start : min(later, default=len(marked))]


def _find(whole: str, end: int, before: str, text: str, after: str, may_be_part: bool) -> Span | None:
    """Where a text stands, after what the template writes before it; as it is, or without white space around it."""
    start = end + len(before)
    if not whole.startswith(before, end):
        # The template writes something else each time, such as a random identifier.
        found = whole.find(text.strip(), end)
        return None if found < 0 else (found, found + len(text.strip()))
    variants = [variant for variant in dict.fromkeys((text, text.strip(), text.lstrip(), text.rstrip())) if variant]
    for tail in (after, ""):
        for variant in variants:
            if whole.startswith(variant + tail, start):
                return start, start + len(variant)
    stop = whole.find(after, start) if may_be_part and after else -1
    # A template may leave the thoughts of an earlier answer out.
    return (start, stop) if stop > start and whole[start:stop].strip() in text else None
