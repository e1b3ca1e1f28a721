"""The formats that rows come in, recognised by their columns, set by set."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .formatting import Encoded, encode_conversation, encode_example, encode_text
from .rendering import ChatOptions, text_of
from .rows import column_names, is_unicode


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = Mapping[str, Any]

# In the order in which they are looked for. `conversations` is ShareGPT's name of messages.
_FORMATS = (
    ("messages", ("messages",)),
    ("messages", ("conversations",)),
    ("question", ("question", "answer")),
    ("completion", ("prompt", "completion")),
    ("text", ("text",)),
)

KNOWN_FORMATS = "`messages`; `prompt` and `completion`; `question` and `answer`; or `text`"


@dataclass(frozen=True)
class RowFormat:
    """
    How the rows of a set are read.

    Args:
        kind (`str`):
            `"messages"`: a conversation, whose loss is taken on the assistant's turns. `"completion"`: TRL's `prompt`
            and `completion`, texts or messages. `"question"`: a question and its answer, as one turn of a
            conversation. `"text"`: a text as it is.
        prompt_column (`str`, *optional*):
            Column of the messages, the prompt or the question.
        completion_column (`str`, *optional*):
            Column of the completion, the answer or the text.
    """

    kind: str
    prompt_column: str | None
    completion_column: str | None

    @property
    def columns(self) -> list[str]:
        """The columns that every row needs."""
        return [column for column in (self.prompt_column, self.completion_column) if column is not None]

    def check(self, row: Row, name: str) -> None:
        """
        Refuse a row that holds something else than the format says. The message names the row and the column only.

        Raises:
            `ValueError`: If a text is empty, no text or not Unicode, or messages are no messages.
        """
        for column in self.columns:
            value = row[column]
            listed = isinstance(value, Sequence) and not isinstance(value, str)
            if self.kind == "messages" or (self.kind == "completion" and listed):
                check_messages(value, name, column)
            elif not isinstance(value, str) or not value.strip():
                raise ValueError(f"{name} has an empty {column!r}, or one that is not text.")
        if self.kind in ("messages", "completion"):
            try:
                tools_of(row)
            except ValueError:
                # Without the cause, which quotes the text.
                raise ValueError(f"{name} has a text in 'tools' that is not a list in JSON.") from None
        for column in (*self.columns, "tools"):
            if not is_unicode(row.get(column)):
                raise ValueError(
                    f"{name} has half of a character in {column!r} (a surrogate without its other half), as "
                    "texts have that were cut or decoded wrongly. Read them anew, or replace it: "
                    "`text.encode('utf-8', 'replace').decode()`."
                )

    def texts(self, row: Row) -> list[str]:
        """The texts of a row in their order: what makes two rows the same, and what the ledger hashes."""
        found = []
        for column in self.columns:
            value = row[column]
            found += [value] if isinstance(value, str) else [text_of(each) or "" for each in plain_messages(value)]
        return found

    def answers(self, row: Row) -> int:
        """How many answers a row has that the loss is taken on."""
        column = self.prompt_column if self.kind == "messages" else self.completion_column
        value = row[column]
        if isinstance(value, str):
            return 1
        return sum(message["role"] == "assistant" for message in plain_messages(value))

    def turn(self, row: Row) -> tuple[str | None, str]:
        """The prompt of a row with one answer, `None` where it is not a single text, and the answer."""
        if self.kind == "messages":
            before, after = self._around_answer(plain_messages(row[self.prompt_column]))
        else:
            given, completion = row[self.prompt_column], row[self.completion_column]
            before = [{"role": "user", "content": given}] if isinstance(given, str) else plain_messages(given)
            after = [{"content": completion}] if isinstance(completion, str) else plain_messages(completion)
            after = [message for message in after if message.get("role", "assistant") == "assistant"]
        prompt = text_of(before[0]) if [message["role"] for message in before] == ["user"] else None
        return prompt, text_of(after[0]) or ""

    def with_answer(self, row: Row, answer: str) -> dict[str, Any]:
        """A row with one answer, with another text in its place."""
        if self.kind == "messages":
            before, _ = self._around_answer(plain_messages(row[self.prompt_column]))
            return {**row, self.prompt_column: [*before, {"role": "assistant", "content": answer}]}
        value = row[self.completion_column]
        changed = answer if isinstance(value, str) else [{"role": "assistant", "content": answer}]
        return {**row, self.completion_column: changed}

    def with_prompt(self, row: Row, template: str) -> dict[str, Any]:
        """A row whose last question is put into a template with a `{prompt}` field."""
        messages = plain_messages(row[self.prompt_column])
        last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=None)
        if last is not None:
            text = template.replace("{prompt}", text_of(messages[last]) or "")
            messages[last] = messages[last] | {"content": text}
        return {**row, self.prompt_column: messages}

    @staticmethod
    def _around_answer(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The messages before the assistant's only one, and that one with what follows."""
        place = next(index for index, message in enumerate(messages) if message["role"] == "assistant")
        return messages[:place], messages[place:]

    def encode(
        self,
        tokenizer: PreTrainedTokenizerBase,
        row: Row,
        options: ChatOptions,
        prompt: str | None = None,
        max_length: int | None = None,
        name: str = "a row",
    ) -> Encoded:
        """
        Token ids and labels of a row.

        Args:
            tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
                Tokenizer of the model.
            row (`Mapping[str, Any]`):
                The row, which [`~RowFormat.check`] has passed.
            options ([`ChatOptions`]):
                Arguments of the chat template, and a system prompt.
            prompt (`str`, *optional*):
                Another wording of the prompt or the question.
            max_length (`int`, *optional*):
                Tokens to keep.
            name (`str`, *optional*):
                What an error calls the row.

        Returns:
            `dict[str, list[int]]`: `input_ids` and `labels`.
        """
        if self.kind == "text":
            return encode_text(tokenizer, row[self.completion_column], "", max_length)
        if self.kind == "messages":
            messages, tools = plain_messages(row[self.prompt_column]), tools_of(row)
            return encode_conversation(tokenizer, messages, None, options, tools, max_length, name)
        given, completion = row[self.prompt_column] if prompt is None else prompt, row[self.completion_column]
        if self.kind == "question":
            return encode_example(tokenizer, given, completion, max_length, options, name)
        if isinstance(given, str) and isinstance(completion, str):
            # As TRL has it: the two texts as they are, without a template.
            return encode_text(tokenizer, completion, given, max_length)
        before = [{"role": "user", "content": given}] if isinstance(given, str) else plain_messages(given)
        answer = [{"role": "assistant", "content": completion}]
        after = answer if isinstance(completion, str) else plain_messages(completion)
        answers = [len(before) + index for index, message in enumerate(after) if message["role"] == "assistant"]
        return encode_conversation(tokenizer, [*before, *after], answers, options, tools_of(row), max_length, name)


def recognise_format(
    row: Row, name: str, prompt_column: str | None = None, completion_column: str | None = None
) -> RowFormat:
    """
    The format of a set, by the columns of its first row.

    Args:
        row (`Mapping[str, Any]`):
            The first row.
        name (`str`):
            Which set it is, for the message.
        prompt_column (`str`, *optional*):
            Column of the question, if the user names one; `"none"` for plain text.
        completion_column (`str`, *optional*):
            Column of the answer or the text, if the user names one.

    Returns:
        [`RowFormat`]: The columns that the user names come first, where the set has them.

    Raises:
        `ValueError`: If no format is recognised; the message names the columns that are there.
    """
    named: list[str] = []
    if prompt_column == "none":
        named = [completion_column or "text"]
        if named[0] in row:
            return RowFormat("text", None, named[0])
    elif prompt_column is not None or completion_column is not None:
        named = [prompt_column or "question", completion_column or "answer"]
        if all(column in row for column in named):
            return RowFormat("question", *named)
    # The other sets may have a format of their own; in the forget set a name that is not there is a mistake.
    if not named or name != "forget":
        for kind, columns in _FORMATS:
            if all(column in row for column in columns):
                return RowFormat(kind, *columns) if len(columns) == 2 else _one_column(kind, columns[0])
    missing = [column for column in named if column not in row]
    wanted = f", and not {' and '.join(map(repr, missing))}" if missing else ""
    raise ValueError(
        f"The {name} set has the columns {column_names(row)}{wanted}. Rows have {KNOWN_FORMATS}; set "
        "`prompt_column` and `completion_column` to use others (`prompt_column` is 'none' for plain text)."
    )


def _one_column(kind: str, column: str) -> RowFormat:
    return RowFormat(kind, None, column) if kind == "text" else RowFormat(kind, column, None)


def plain_messages(messages: Sequence[Row]) -> list[dict[str, Any]]:
    """Messages with `role` and `content`, also from ShareGPT's `from` and `value`."""
    from trl import maybe_convert_to_chatml

    converted = maybe_convert_to_chatml({"messages": [copy.deepcopy(without_gaps(message)) for message in messages]})
    roles = {"human": "user", "gpt": "assistant"}
    return [message | {"role": roles.get(message["role"], message["role"])} for message in converted["messages"]]


def tools_of(row: Row) -> Any:
    """The tools that a row names: a list, or a list written in JSON, as some datasets have it."""
    tools = row.get("tools")
    if not isinstance(tools, str):
        return tools
    tools = json.loads(tools) if tools.strip() else None
    if tools is not None and not isinstance(tools, list):
        raise ValueError("Not a list.")
    return tools


def is_text_part(part: Any) -> bool:
    """Whether a part of a message's content is a text."""
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def without_gaps(message: Row) -> dict[str, Any]:
    """A message without the keys that it only has because another one has them: Arrow gives `None` to all others."""
    return {key: value for key, value in message.items() if value is not None or key == "content"}


def check_messages(value: Any, name: str, column: str) -> None:
    """
    Refuse what is no conversation that a loss can be taken on.

    Raises:
        `ValueError`: Naming the row and the column, never a text.
    """
    listed = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    if not listed or not all(isinstance(message, Mapping) for message in value):
        raise ValueError(
            f"{name} has no conversation in {column!r}: it must be a list of messages with `role` and `content`."
        )
    for number, message in enumerate(map(without_gaps, value)):
        role, content = message.get("role", message.get("from")), message.get("content")
        if content is not None and message.get("value") is not None:
            raise ValueError(f"{name}: message {number} of {column!r} has both `content` and `value`. Leave one out.")
        content = message.get("value") if content is None else content
        if not isinstance(role, str):
            raise ValueError(f"{name}: message {number} of {column!r} has no `role`.")
        if isinstance(content, Sequence) and not isinstance(content, str):
            if not all(map(is_text_part, content)):
                raise ValueError(f"{name}: message {number} of {column!r} has parts that are not text.")
        elif content is None and not any(message.get(key) for key in ("tool_calls", "function_call")):
            # Its text may stand under another name. It would be left out in silence.
            raise ValueError(f"{name}: message {number} of {column!r} has no `content`, and calls no tool.")
        elif content is not None and not isinstance(content, str):
            raise ValueError(f"{name}: message {number} of {column!r} has a `content` that is not text.")
