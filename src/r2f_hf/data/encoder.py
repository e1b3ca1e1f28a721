"""From rows to encoded examples that are known to fit the model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .containers import Rows
from .formats import RowFormat, recognise_format
from .formatting import IGNORE_INDEX, Encoded
from .rendering import ChatOptions, check_template_arguments
from .rows import Row, check_rows, is_unicode
from .views import example_prompts
from .windows import cut_into_windows


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class ExampleEncoder:
    """
    Encodes rows and refuses those that do not fit the model.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model.
        context (`int`):
            The longest example that the model can read, in tokens.
        prompt_column (`str`, *optional*):
            Column of the question, where the rows' format is not to be recognised; `"none"` for plain text.
        completion_column (`str`, *optional*):
            Column of the answer, or of the text.
        views_column (`str`, *optional*):
            Column with paraphrases of the prompt.
        view_templates (`Sequence[str]`, *optional*):
            Texts with a `{prompt}` field.
        max_length (`int`, *optional*):
            Tokens of an example. Longer ones are cut on the right, and longer texts into windows.
        window_overlap (`int`, *optional*, defaults to `0`):
            Tokens that a window of a text shares with the one before.
        options ([`ChatOptions`], *optional*):
            Arguments of the chat template, and a system prompt.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        context: int,
        prompt_column: str | None = None,
        completion_column: str | None = None,
        views_column: str | None = None,
        view_templates: Sequence[str] | None = None,
        max_length: int | None = None,
        window_overlap: int = 0,
        options: ChatOptions | None = None,
    ):
        self.tokenizer, self.context = tokenizer, context
        self.prompt_column, self.completion_column = prompt_column, completion_column
        self.views_column, self.view_templates = views_column, view_templates
        self.max_length, self.window_overlap = max_length, window_overlap
        self.options = options or ChatOptions()
        if tokenizer is not None:
            check_template_arguments(tokenizer, self.options)

    def format_of(self, rows: Rows | None, name: str, views: bool = False) -> RowFormat:
        """
        The format of a set, every row of which is checked.

        Args:
            rows (`Dataset` or `Sequence[Mapping]`):
                The set.
            name (`str`):
                Which set it is, for errors.
            views (`bool`, *optional*, defaults to `False`):
                Whether its rows also need the column of paraphrases.

        Raises:
            `ValueError`: If the set is empty, its format is not recognised, or a row lacks a column or a text.
        """
        check_rows(rows, name, [])
        row_format = recognise_format(rows[0], name, self.prompt_column, self.completion_column)
        check_rows(rows, name, [*row_format.columns, *([self.views_column] if views else [])])
        for index, row in enumerate(rows):
            row_format.check(row, f"{name}[{index}]")
        prompts_are_texts = row_format.kind == "completion" and all(
            isinstance(row[row_format.prompt_column], str) for row in rows
        )
        wanted = views and (self.views_column or self.view_templates)
        if wanted and row_format.kind != "question" and not prompts_are_texts:
            held = "messages" if row_format.kind == "completion" else repr(row_format.columns[0])
            raise ValueError(
                f"The {name} set holds {held}, of which there are no other wordings. Leave `views_column` and "
                "`view_templates` out, or give the rows as questions and answers."
            )
        completions_are_texts = prompts_are_texts and all(
            isinstance(row[row_format.completion_column], str) for row in rows
        )
        given = {"chat_template_kwargs": self.options.template_kwargs, "system_prompt": self.options.system_prompt}
        names = " and ".join(f"`{option}`" for option, value in given.items() if value)
        if names and (row_format.kind == "text" or completions_are_texts):
            logger.warning(
                "The %s set holds texts, which are read as they are: %s has no effect on them.", name, names
            )
        return row_format

    def windows(self, row: Row, row_format: RowFormat, name: str) -> list[Encoded]:
        """A row in its own wording: one example, or a long text's windows."""
        if row_format.kind != "text":
            return [self._encode(row, row_format, None, name)]
        example = self._known(row_format.encode(self.tokenizer, row, self.options, name=name), name)
        size = min(self.max_length or self.context, self.context)
        return [self._checked(window, name) for window in cut_into_windows(example, size, self.window_overlap)]

    def views(self, row: Row, row_format: RowFormat, name: str) -> list[list[Encoded]]:
        """A row in all its wordings, its own first; of a long text each of its windows."""
        if row_format.kind in ("messages", "text"):
            return [[window] for window in self.windows(row, row_format, name)]
        prompt = row[row_format.prompt_column]
        if not isinstance(prompt, str):
            return [[self._encode(row, row_format, None, name)]]
        given = row[self.views_column] if self.views_column is not None else None
        if given is not None and not isinstance(given, str | list | tuple):
            raise ValueError(f"{name} has neither a text nor a list of texts in {self.views_column!r}.")
        prompts = example_prompts(row, row_format.prompt_column, self.views_column, self.view_templates)
        if not all(isinstance(view, str) and view.strip() and is_unicode(view) for view in prompts[1:]):
            raise ValueError(f"{name} has an empty view in {self.views_column!r}, or one that is not text.")
        return [[self._encode(row, row_format, view, name) for view in prompts]]

    def with_answer(
        self, row: Row, row_format: RowFormat, answer: str, name: str, template: str | None = None
    ) -> list[Encoded]:
        """
        A row in all its wordings, with another answer.

        Args:
            row (`Mapping[str, Any]`):
                The row, which has one answer.
            row_format ([`RowFormat`]):
                Its format.
            answer (`str`):
                The answer.
            name (`str`):
                What an error calls the row.
            template (`str`, *optional*):
                A text with a `{prompt}` field, which takes the place of the prompt.

        Raises:
            `ValueError`: If it does not fit the model.
        """
        row = row_format.with_answer(row, answer)
        prompt = row[row_format.prompt_column]
        if not isinstance(prompt, str):
            if template is not None:
                row = row_format.with_prompt(row, template)
            return [self._encode(row, row_format, None, name)]
        prompts = example_prompts(row, row_format.prompt_column, self.views_column, self.view_templates)
        if template is not None:
            prompts = [template.replace("{prompt}", each) for each in prompts]
        return [self._encode(row, row_format, each, name) for each in prompts]

    def _encode(self, row: Row, row_format: RowFormat, prompt: str | None, name: str) -> Encoded:
        example = row_format.encode(self.tokenizer, row, self.options, prompt, self.max_length, name)
        return self._known(self._checked(example, name), name)

    def _known(self, example: Encoded, name: str) -> Encoded:
        """Refuse a row of which nothing is left but what every row could have."""
        nothing = {IGNORE_INDEX, self.tokenizer.eos_token_id, self.tokenizer.unk_token_id}
        labels = set(example["labels"])
        if labels <= nothing and labels != {IGNORE_INDEX}:
            raise ValueError(
                f"{name} has no token to take the loss on but the unknown one or the end of the sequence: the "
                "tokenizer does not know its text. Take the tokenizer that the model was trained with."
            )
        return example

    def _checked(self, example: Encoded, name: str) -> Encoded:
        length = len(example["input_ids"])
        if length > self.context:
            raise ValueError(
                f"{name} has {length} tokens, the model reads at most {self.context}. Shorten it, or set `max_length` "
                f"to at most {self.context} to cut long examples."
            )
        # The first token has nothing before it that could predict it.
        if all(label == IGNORE_INDEX for label in example["labels"][1:]):
            raise ValueError(
                f"{name} has no token left to take the loss on. Is its answer cut off by `max_length`, or does a "
                "conversation have no text of the assistant's?"
            )
        return example
