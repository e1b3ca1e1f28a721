"""The gradient norms of a row are those of autograd, and the model stays as it was."""

from __future__ import annotations

import pytest
import torch
from conftest import build_model
from transformers import PreTrainedTokenizerFast

from r2f_hf.data.formatting import encode_example
from r2f_hf.scoring import gradient_norms


def test_norms_are_those_of_a_backward_pass(tokenizer: PreTrainedTokenizerFast) -> None:
    model = build_model("llama").eval()
    examples = [encode_example(tokenizer, "Where does Orla1 live?", answer) for answer in ("By the harbour.", "Gone.")]
    first = next(model.parameters())
    first.requires_grad_(False)
    first.grad = torch.ones_like(first)
    found = gradient_norms(model, examples, 0)
    assert not first.requires_grad and bool((first.grad == 1).all())
    assert all(parameter.grad is None for parameter in list(model.parameters())[1:])

    first.grad = None
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    for example, norms in zip(examples, found, strict=True):
        model.zero_grad()
        ids, labels = (torch.tensor([example[name]]) for name in ("input_ids", "labels"))
        model(input_ids=ids, labels=labels).loss.backward()
        expected = [0.0 if each.grad is None else each.grad.norm().item() for each in model.parameters()]
        assert norms == pytest.approx(expected, rel=1e-4)


def test_an_empty_answer_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="Row 0 has no token to score"):
        gradient_norms(build_model("llama"), [{"input_ids": [1, 2], "labels": [-100, -100]}], 0)
