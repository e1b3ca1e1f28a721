"""One rendering of a whole conversation by the chat template, and where in it each message's text stands."""

from __future__ import annotations

import inspect
import logging
import random
import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..lookup import lookup


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Message = Mapping[str, Any]
Span = tuple[int, int]

# Ends the thoughts that a template leaves out of earlier answers: `</think>`, `[/THINK]`, `<|end|>`, `<channel|>`.
_CLOSING_TAG = re.compile(r"(</[^<>]+>|\[/[^\[\]]+\]|<[^<>]*\|>)$")
# Renderings of a conversation by a template that has the time of day in it.
TRIES = 3
# Marks the part of a template that TRL takes the loss on. Only Transformers knows it.
_GENERATION_TAG = re.compile(r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}")


class ChatOptions(NamedTuple):
    """
    What a chat template is given in addition to the conversation.

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


def check_template_arguments(tokenizer: PreTrainedTokenizerBase, options: ChatOptions) -> None:
    """
    Refuse arguments that the chat template does not know, and say so if there is no template.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.
        options ([`ChatOptions`]):
            Arguments of the template.

    Raises:
        `ValueError`: If the template has no variable of that name; the message names the nearest one.
    """
    from jinja2 import Environment, TemplateError
    from jinja2.meta import find_undeclared_variables

    if not options.template_kwargs:
        return
    if tokenizer.chat_template is None:
        logger.warning("`chat_template_kwargs` has no effect: the tokenizer has no chat template.")
        return
    method = inspect.signature(tokenizer.apply_chat_template).parameters
    try:
        template = options.template_kwargs.get("chat_template") or tokenizer.get_chat_template()
        environment = Environment(extensions=["jinja2.ext.loopcontrols"])
        known = find_undeclared_variables(environment.parse(_GENERATION_TAG.sub("", template)))
    except (TemplateError, ValueError, TypeError, AttributeError):
        # Rendering a row says what is wrong with the template.
        return
    for name in options.template_kwargs:
        if name not in method:
            lookup(dict.fromkeys(known), name, "argument of the chat template in `chat_template_kwargs`", False)


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
    # Templates of vision-language models take a list of parts, some for one role only. They pass a plain text over, or
    # fail on it.
    as_parts = {index for index, word in enumerate(words) if word is not None}
    try:
        marked = render(messages, words)
        as_parts = {index for index in as_parts if words[index] not in marked}
    except ValueError as refusal:
        try:
            marked = render(messages, words, as_parts)
        except ValueError:
            raise refusal from None
    if as_parts:
        marked = render(messages, words, as_parts)
    for message, word in zip(messages, words, strict=True):
        if word is None:
            continue
        how = "drops" if word not in marked else "repeats" if marked.count(word) > 1 else None
        if re.search(rf"""(["'])text\1\s*:\s*["']{word}""", marked):
            how = "writes a list of parts instead of"
        if how is not None:
            raise _unlike(name, message, how)
    for _ in range(TRIES):
        whole = render(messages, texts, as_parts, shown=False)
        spans, missed = _spans(marked, whole, words, texts, [message["role"] for message in messages])
        if missed is None:
            return whole, spans
        before, marked = marked, render(messages, words, as_parts)
        if marked == before:
            raise _unlike(name, messages[missed], "rewrites")
    raise _unlike(name, messages[missed], "writes something else each time it is rendered, a clock for one, around")


def _spans(
    marked: str, whole: str, words: Sequence[str | None], texts: Sequence[str | None], roles: Sequence[str]
) -> tuple[list[Span | None], int | None]:
    """Where the texts stand in the whole rendering, and the number of the first that is not found."""
    spans: list[Span | None] = [None] * len(texts)
    end, marked_end = 0, 0
    last = max((index for index, text in enumerate(texts) if text is not None), default=-1)
    # In the order in which the template writes them. A system message may come after the user's.
    places = sorted((marked.index(word), index) for index, word in enumerate(words) if word is not None)
    stops = [start for start, _ in places[1:]] + [len(marked)]
    for (start, index), stop in zip(places, stops, strict=True):
        before, marked_end = marked[marked_end:start], start + len(words[index])
        earlier_answer = roles[index] == "assistant" and index < last
        span = _find(whole, end, before, texts[index], marked[marked_end:stop], may_be_part=earlier_answer)
        if span is None:
            return spans, index
        spans[index] = span
        end = span[1]
    return spans, None


def _unlike(name: str, message: Message, what: str) -> ValueError:
    return ValueError(
        f"{name}: the chat template {what} the text of a {_shown_role(message)} message, so the model would not see "
        "the row as it is. Choose a tokenizer with another `chat_template`, or set one."
    )


def _shown_role(message: Message) -> str:
    """The role of a message for an error. A text may stand in its place by mistake."""
    role = str(message["role"])
    return repr(role) if role.isidentifier() else "(no known role)"


def text_of(message: Message) -> str | None:
    """The text of a message: its content, or the text of its parts; `None` where there is none."""
    content = message.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = "".join(part["text"] for part in content if part.get("type") == "text") or None
    return content or None


class _Renderer:
    """Renders messages by a tokenizer's template, each time with the same random numbers."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, options: ChatOptions, tools: Sequence[Any] | None, name: str
    ):
        self.tokenizer, self.tools, self.name = tokenizer, tools, name
        self.kwargs = dict(options.template_kwargs or {})
        self.random = random.getstate()

    def __call__(
        self,
        messages: Sequence[Message],
        texts: Sequence[str | None],
        as_parts: Collection[int] = (),
        shown: bool = True,
    ) -> str:
        """
        Render messages with other texts.

        Args:
            messages (`Sequence[Mapping]`):
                The messages.
            texts (`Sequence[str]`, *optional*):
                The text of each.
            as_parts (`Collection[int]`, *optional*):
                Which messages get a list of parts.
            shown (`bool`, *optional*, defaults to `True`):
                Whether an error may show the template's own words, which can quote the texts that it is given.
        """
        # jinja2 is there wherever a chat template can be rendered.
        from jinja2 import TemplateError

        given = [
            dict(message) if text is None else {**message, "content": _content(text, index in as_parts)}
            for index, (message, text) in enumerate(zip(messages, texts, strict=True))
        ]
        random.setstate(self.random)
        try:
            return self.tokenizer.apply_chat_template(given, tools=self.tools, tokenize=False, **self.kwargs)
        except Exception as error:
            # A template is a program of the user's, which can fail in any way.
            roles = ", ".join(_shown_role(message).strip("'") for message in messages)
            rest = [
                {key: value for key, value in message.items() if key != "role" or not str(value).isidentifier()}
                for message in given
            ]
            quotes = any(text in str(error) for text in _strings([rest, self.tools]) if text not in texts)
            safe = shown and isinstance(error, TemplateError) and not quotes
            said = f": {error}" if safe else f" ({type(error).__name__})"
            raise ValueError(
                f"{self.name}: the chat template refuses a conversation of the roles {roles}{said}. Change the rows "
                "or the tokenizer's `chat_template`. If it refuses the system message or an argument, leave "
                "`system_prompt` or `chat_template_kwargs` out."
            ) from None


def _strings(value: Any) -> list[str]:
    """All texts inside of a value."""
    if isinstance(value, Mapping):
        return [text for each in value.values() for text in _strings(each)]
    if isinstance(value, list | tuple):
        return [text for each in value for text in _strings(each)]
    return [value] if isinstance(value, str) and value else []


def _content(text: str, as_part: bool) -> str | list[dict[str, str]]:
    return [{"type": "text", "text": text}] if as_part else text


def _find(whole: str, end: int, before: str, text: str, after: str, may_be_part: bool) -> Span | None:
    """Where a text stands, after what the template writes before it; as it is, or without white space around it."""
    variants = [variant for variant in dict.fromkeys((text, text.strip(), text.lstrip(), text.rstrip())) if variant]
    common = 0
    while common < len(before) and whole[end + common : end + common + 1] == before[common]:
        common += 1
    # A template may leave out an empty thought of its own if the text has one.
    for length in range(common, -1, -1) if text.strip() else ():
        start = end + length
        for tail in (after, "") if length == len(before) else (after,):
            for variant in variants:
                ends = tail or length == len(before) or start + len(variant) == len(whole)
                if ends and whole.startswith(variant + tail, start):
                    return start, start + len(variant)
    if not may_be_part or not after or common < len(before):
        return None
    # It may leave the thoughts of an earlier answer out.
    start = end + len(before)
    stop = whole.find(after, start)
    kept, text = whole[start:stop].strip(), text.strip()
    left_out = stop > start and bool(kept) and text.endswith(kept)
    return (start, stop) if left_out and _CLOSING_TAG.search(text.removesuffix(kept).rstrip()) else None
