"""Ids of tokens, and the embeddings that a model has for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ..data.collator import check_embedded, num_embeddings


def check_ids(sets: Mapping[str, Any], size: int) -> None:
    """
    Refuse examples with a token that the model has no embedding for.

    Args:
        sets (`Mapping[str, Any]`):
            Encoded examples by the name of their set. What is not a list of them is passed over.
        size (`int`):
            Number of embeddings.

    Raises:
        `ValueError`: Naming the id of the first such token and its row.
    """
    for name, examples in sets.items():
        for example in examples if isinstance(examples, list) else []:
            check_embedded(example["input_ids"], size, f"{name}[{example['item']}]")


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
