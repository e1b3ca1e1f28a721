"""Batches: order, padding and masks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from r2f_hf.data.collator import ForgetRetainCollator, first_items, pad_token_id


def example(*ids: int, prompt: int = 1, row: int | None = None) -> dict[str, Any]:
    return {
        "input_ids": list(ids),
        "labels": [-100] * prompt + list(ids[prompt:]),
        **({} if row is None else {"row": row}),
    }


def test_rows_are_padded_on_the_right_and_padding_carries_no_label() -> None:
    batch = ForgetRetainCollator(9)([example(1, 2, 3), example(4, 9)])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    # A token that equals the padding token is a token all the same.
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [-100, 9, -100]]
    assert batch.keys() == {"input_ids", "attention_mask", "labels"}


def test_forget_rows_come_first_with_their_numbers() -> None:
    features = [
        {"forget": [example(1, 2, row=0), example(1, 2, 3, row=1)], "retain": [example(4, 5, row=7)]},
        {"forget": [example(6, 7, 8, 9, prompt=2, row=4)], "retain": [example(7, 8, row=2)]},
    ]
    batch = ForgetRetainCollator(0)(features)
    assert batch["input_ids"].tolist() == [[1, 2, 0, 0], [1, 2, 3, 0], [6, 7, 8, 9], [4, 5, 0, 0], [7, 8, 0, 0]]
    assert batch["is_forget"].tolist() == [True, True, True, False, False]
    assert batch["item"].tolist() == [0, 0, 1, 0, 1]
    assert batch["row"].tolist() == [0, 1, 4, 7, 2]


def test_without_retain_rows() -> None:
    batch = ForgetRetainCollator(0)([{"forget": [example(1, 2, row=0)], "retain": []}])
    assert batch.keys() == {"input_ids", "attention_mask", "labels", "is_forget", "item", "row"}
    assert batch["is_forget"].tolist() == [True]


@pytest.mark.parametrize(
    ("pad", "eos", "expected"), [("<unk>", "<eos>", "<unk>"), (None, "<eos>", "<eos>"), (None, None, None)]
)
def test_any_tokenizer_can_pad(
    pad: str | None, eos: str | None, expected: str | None, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token, tokenizer.eos_token = pad, eos
    assert pad_token_id(tokenizer) == (0 if expected is None else tokenizer.convert_tokens_to_ids(expected))


def test_the_first_items_of_a_batch_are_those_that_a_smaller_batch_would_hold() -> None:
    features = [
        {
            "forget": [example(1, 2, row=0), example(1, 2, 3, row=0)],
            "retain": [],
        },
        {"forget": [example(6, 7, 8, row=0)], "retain": [example(4, 5, 6, row=1)]},
        {"forget": [example(1, 3, 3, row=0)], "retain": [example(4, 5, 7, row=2)]},
    ]
    collator = ForgetRetainCollator(0)
    batch, smaller = collator(features), collator(features[:2])
    first = first_items(batch, 2)
    assert first.keys() == smaller.keys()
    for name, values in smaller.items():
        assert torch.equal(first[name], values), name


def test_without_items_a_batch_is_one_row_that_counts_for_nothing() -> None:
    batch = ForgetRetainCollator(0)([{"forget": [example(1, 2, 3, row=0)], "retain": [example(4, 5, row=0)]}])
    nothing = first_items(batch, 0)
    assert nothing["input_ids"].shape == (1, 3)
    assert (nothing["labels"] == -100).all() and not nothing["is_forget"].any()
