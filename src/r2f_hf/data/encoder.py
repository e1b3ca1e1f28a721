"""From rows to encoded examples that are known to fit the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .dataset import Encoded
from .formatting import IGNORE_INDEX, encode_example
from .rows import Row
from .views import example_prompts


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ExampleEncoder:
    """
    Encodes rows and refuses those that do not fit the model.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model.
        context (`int`):
            The longest example that the model can read, in tokens.
        prompt_column (`str`, *optional*):
            Column of the prompt; `None` for plain text.
        completion_column (`str`):
            Column of the text that the loss is taken on.
        views_column (`str`, *optional*):
            Column with paraphrases of the prompt.
        view_templates (`Sequence[str]`, *optional*):
            Texts with a `{prompt}` field.
        max_length (`int`, *optional*):
            Tokens of an example; longer ones are cut on the right.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        context: int,
        prompt_column: str | None = "question",
        completion_column: str = "answer",
        views_column: str | None = None,
        view_templates: Sequence[str] | None = None,
        max_length: int | None = None,
    ):
        self.tokenizer, self.context = tokenizer, context
        self.prompt_column, self.completion_column = prompt_column, completion_column
        self.views_column, self.view_templates = views_column, view_templates
        self.max_length = max_length

    @property
    def columns(self) -> list[str]:
        """The columns that every row needs."""
        return [column for column in (self.prompt_column, self.completion_column) if column is not None]

    def original(self, row: Row, name: str) -> Encoded:
        """The row in its own wording."""
        self._check_text(row, name)
        prompt = "" if self.prompt_column is None else row[self.prompt_column]
        return self._encode(prompt, row, name)

    def views(self, row: Row, name: str) -> list[Encoded]:
        """The row in all its wordings, its own first."""
        self._check_text(row, name)
        prompts = example_prompts(row, self.prompt_column, self.views_column, self.view_templates)
        if not all(isinstance(view, str) and view.strip() for view in prompts[1:]):
            raise ValueError(f"{name} has an empty view in {self.views_column!r}, or one that is not text.")
        return [self._encode(prompt, row, name) for prompt in prompts]

    def _check_text(self, row: Row, name: str) -> None:
        # An empty prompt would make the example plain text, an empty completion leave the end-of-sequence token alone.
        for column in self.columns:
            if not isinstance(row[column], str) or not row[column].strip():
                raise ValueError(f"{name} has an empty {column!r}, or one that is not text.")

    def _encode(self, prompt: str, row: Row, name: str) -> Encoded:
        example = encode_example(self.tokenizer, prompt, row[self.completion_column], self.max_length)
        length = len(example["input_ids"])
        if length > self.context:
            raise ValueError(
                f"{name} has {length} tokens, the model reads at most {self.context}. Shorten it, or set `max_length` "
                f"to at most {self.context} to cut long examples."
            )
        # The first token has nothing before it that could predict it.
        if all(label == IGNORE_INDEX for label in example["labels"][1:]):
            raise ValueError(
                f"{name} has no token left to take the loss on. Is its completion cut off by `max_length`?"
            )
        return example
