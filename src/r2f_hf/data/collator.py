"""Batches: forget rows first, then retain rows, padded together."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from ..distributed import whole_shape
from .formatting import IGNORE_INDEX


def num_embeddings(model: nn.Module) -> int:
    """How many tokens a model has embeddings for. The tokenizer may have more, or fewer."""
    return whole_shape(model.get_input_embeddings().weight)[0]


def pad_token_id(tokenizer: PreTrainedTokenizerBase, model: nn.Module | None = None) -> int:
    """
    The id to pad with. Padding is masked, so any id serves that the model has an embedding for.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer. It may name a padding token that was added to it, and not to the model.
        model ([`~transformers.PreTrainedModel`], *optional*):
            The model.
    """
    size = sys.maxsize if model is None else num_embeddings(model)
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token for token in candidates if token is not None and token < size)


def check_embedded(ids: Sequence[int], size: int, name: str) -> None:
    """
    Refuse a token that the model has no embedding for.

    Args:
        ids (`Sequence[int]`):
            Token ids.
        size (`int`):
            Number of embeddings.
        name (`str`):
            What an error calls the row.

    Raises:
        `ValueError`: Naming the row and the id.
    """
    highest = max(ids, default=0)
    if highest >= size:
        # An added token may itself be a text to forget, and is not shown.
        raise ValueError(
            f"{name} has a token of id {highest}, and the model has embeddings for only {size} tokens. Give the "
            "tokens that were added to the tokenizer an embedding (`model.resize_token_embeddings(len(tokenizer))`) "
            "and train them, or take the tokenizer that the model was trained with."
        )


@dataclass
class ForgetRetainCollator:
    """
    Pads encoded examples on the right.

    Args:
        pad_token_id (`int`):
            Id for `input_ids`; `labels` are padded with -100.

    Returns:
        `dict[str, torch.Tensor]`: `input_ids`, `attention_mask`, `labels` of shape `(rows, length)`. For items of a
        [`ForgetRetainDataset`] also `is_forget` (bool, `(rows,)`), `item` (int64, `(rows,)`, the position in the batch
        of the item that a row belongs to) and `row` (int64, `(rows,)`, the number of the forget view, of the second
        answer or of the retain example, by which references are looked up). With second answers there is `is_second`
        (bool, `(rows,)`) too: they stand between the two sets, in the order of the forget rows.
    """

    pad_token_id: int

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Tensor]:
        if "forget" not in features[0]:
            return self._pad(features)
        forget = [view for feature in features for view in feature["forget"]]
        second = [answer for feature in features for answer in feature.get("second", [])]
        retain = [example for feature in features for example in feature["retain"]]
        rows = forget + second + retain
        batch = self._pad(rows)
        place = torch.arange(len(rows))
        batch["is_forget"] = place < len(forget)
        if second:
            batch["is_second"] = ~batch["is_forget"] & (place < len(forget) + len(second))
        names = ("forget", "second", "retain")
        batch["item"] = torch.tensor(
            [index for name in names for index, feature in enumerate(features) for _ in feature.get(name, [])]
        )
        batch["row"] = torch.tensor([row["row"] for row in rows])
        return batch

    def _pad(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        def pad(key: str, value: int) -> Tensor:
            return pad_sequence([torch.tensor(row[key]) for row in rows], batch_first=True, padding_value=value)

        input_ids = pad("input_ids", self.pad_token_id)
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        return {
            "input_ids": input_ids,
            "attention_mask": (torch.arange(input_ids.shape[1]) < lengths[:, None]).long(),
            "labels": pad("labels", IGNORE_INDEX),
        }


def first_items(batch: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """
    The rows of a batch's first items. What comes after them is there to even out the processes' batches.

    Args:
        batch (`dict[str, torch.Tensor]`):
            A batch of items of a [`ForgetRetainDataset`].
        count (`int`):
            Items to keep. With none, one row is left that has no labels, so that the forward pass has something to do.

    Returns:
        `dict[str, torch.Tensor]`
    """
    if count:
        return {name: values[batch["item"] < count] for name, values in batch.items()}
    batch = {name: values[:1] for name, values in batch.items()}
    unlabelled = {"labels": torch.full_like(batch["labels"], IGNORE_INDEX)}
    nothing = torch.zeros_like(batch["is_forget"])
    return batch | unlabelled | {name: nothing for name in ("is_forget", "is_second") if name in batch}
