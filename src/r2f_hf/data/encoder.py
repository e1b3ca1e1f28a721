"""From rows to encoded examples that are known to fit the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .dataset import Encoded
from .formatting import IGNORE_INDEX, encode_example
from .rows import Row
from .views import example_prompts


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..config import R2FConfig


class ExampleEncoder:
    """
    Encodes rows and refuses those that do not fit the model.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model.
        args ([`R2FConfig`]):
            Names the columns, the views and `max_length`.
        context (`int`):
            The longest example that the model can read, in tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, args: R2FConfig, context: int):
        self.tokenizer = tokenizer
        self.args = args
        self.context = context

    @property
    def columns(self) -> list[str]:
        """The columns that every row needs."""
        return [column for column in (self.args.prompt_column, self.args.completion_column) if column is not None]

    def original(self, row: Row, name: str) -> Encoded:
        """The row in its own wording."""
        self._check_text(row, name)
        prompt = "" if self.args.prompt_column is None else row[self.args.prompt_column]
        return self._encode(prompt, row, name)

    def views(self, row: Row, name: str) -> list[Encoded]:
        """The row in all its wordings, its own first."""
        self._check_text(row, name)
        prompts = example_prompts(row, self.args.prompt_column, self.args.views_column, self.args.view_templates)
        if not all(isinstance(view, str) and view.strip() for view in prompts[1:]):
            raise ValueError(f"{name} has an empty view in {self.args.views_column!r}, or one that is not text.")
        return [self._encode(prompt, row, name) for prompt in prompts]

    def _check_text(self, row: Row, name: str) -> None:
        # An empty prompt would make the example plain text, an empty completion leave the end-of-sequence token alone.
        for column in self.columns:
            if not isinstance(row[column], str) or not row[column].strip():
                raise ValueError(f"{name} has an empty {column!r}, or one that is not text.")

    def _encode(self, prompt: str, row: Row, name: str) -> Encoded:
        example = encode_example(self.tokenizer, prompt, row[self.args.completion_column], self.args.max_length)
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
