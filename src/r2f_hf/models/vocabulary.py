"""Ids of tokens, and the embeddings that a model has for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ..data.collator import num_embeddings


def check_ids(sets: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, size: int) -> None:
    """
    Refuse examples with a token that the model has no embedding for.

    Args:
        sets (`Mapping[str, Any]`):
            Encoded examples by the name of their set. What is not a list of them is passed over.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            What has encoded the examples.
        size (`int`):
            Number of embeddings.

    Raises:
        `ValueError`: Naming the first such token and its row.
    """
    for name, examples in sets.items():
        for example in examples if isinstance(examples, list) else []:
            highest = max(example["input_ids"], default=0)
            if highest >= size:
                raise ValueError(
                    f"{name}[{example['item']}] has the token {tokenizer.convert_ids_to_tokens(highest)!r} of id "
                    f"{highest}, and the model has embeddings for only {size} tokens. Give the tokens that were added "
                    "to the tokenizer an embedding (`model.resize_token_embeddings(len(tokenizer))`) and train them, "
                    "or take the tokenizer that the model was trained with."
                )


class PaddingAsItWas(TrainerCallback):
    """
    Leaves the padding token of a model's configuration as it was, if the tokenizer's has no embedding.

    Trainer writes the tokenizer's into the configuration when training begins. With an id that has no embedding the
    model that is saved could not be loaded.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model, before training.
    """

    def __init__(self, model: PreTrainedModel):
        self.size = num_embeddings(model)
        self.before = [
            (config, config.pad_token_id)
            for config in (model.config.get_text_config(), getattr(model, "generation_config", None))
            if config is not None
        ]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for config, before in self.before:
            if config.pad_token_id is not None and config.pad_token_id >= self.size:
                config.pad_token_id = before
