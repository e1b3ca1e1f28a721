"""The log-likelihood of a choice is the sum over its tokens after the prompt, and nothing closes it."""

from __future__ import annotations

import pytest
import torch
from conftest import build_model
from transformers import PreTrainedTokenizerFast

from r2f_hf.scoring import score_choices


@pytest.mark.parametrize("add_bos", [True, False])
def test_log_likelihoods_by_hand(add_bos: bool, tokenizer: PreTrainedTokenizerFast) -> None:
    model = build_model("llama").eval()
    prompts, choices = (
        ["Where does Orla1 live?\nAnswer:", "And Bram2?\nAnswer:"],
        [["by the harbour", "gone"], ["A", "B"]],
    )
    found = score_choices(model, tokenizer, prompts, choices, add_bos=add_bos)
    for prompt, texts, scores in zip(prompts, choices, found, strict=True):
        given = len(tokenizer(prompt, add_special_tokens=add_bos)["input_ids"])
        for text, score in zip(texts, scores, strict=True):
            ids = tokenizer(f"{prompt} {text}", add_special_tokens=add_bos)["input_ids"]
            with torch.no_grad():
                log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            expected = sum(log_probs[place - 1, ids[place]].item() for place in range(given, len(ids)))
            assert score == pytest.approx(expected, abs=1e-4)


def test_an_empty_choice_is_refused_by_name(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="Row 1, choice 0 has an empty prompt or choice"):
        score_choices(build_model("llama"), tokenizer, ["A?", "B?"], [["a", "b"], [" ", "b"]])
