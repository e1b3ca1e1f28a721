"""The statistics of each token are those of one row at a time, and of the whole distribution."""

from __future__ import annotations

import math
from statistics import fmean

import pytest
import torch
from conftest import CONFIGS, build_model
from transformers import PreTrainedTokenizerFast

from r2f_hf.data.formatting import encode_example
from r2f_hf.scoring import score_completions, token_statistics
from r2f_hf.scoring.token_statistics import _row_statistics


PROMPTS = ["Where does Orla1 live?", "What is the home of Bram2?", "Cleo?", ""]
ANSWERS = ["By the harbour.", "Bram2 lives by the mountain.", "The forest.", "Orla1 lives by the desert."]


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("kind", CONFIGS)
def test_statistics_equal_those_of_one_row_at_a_time(
    kind: str, batch_size: int, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = build_model(kind).eval()
    examples = [encode_example(tokenizer, *pair) for pair in zip(PROMPTS, ANSWERS, strict=True)]
    rows = token_statistics(model, examples, 0, batch_size)
    for example, row in zip(examples, rows, strict=True):
        with torch.no_grad():
            log_probs = model(torch.tensor([example["input_ids"]])).logits[0].double().log_softmax(-1)
        places = [place for place, label in enumerate(example["labels"]) if label != -100 and place > 0]
        labels = [example["labels"][place] for place in places]
        before = log_probs[[place - 1 for place in places]]
        mean = (before.exp() * before).sum(-1)
        variance = (before.exp() * before.square()).sum(-1) - mean.square()
        assert row.log_probs == pytest.approx(before[range(len(labels)), labels].tolist(), abs=1e-4)
        assert row.means == pytest.approx(mean.tolist(), abs=1e-4)
        assert row.deviations == pytest.approx(variance.sqrt().tolist(), abs=1e-4)
        assert row.hits == (before.argmax(-1) == torch.tensor(labels)).tolist()
        assert row.loss == pytest.approx(-fmean(row.log_probs))
    scores = score_completions(model, tokenizer, PROMPTS[:3], ANSWERS[:3])
    assert [-row.loss for row in rows[:3]] == pytest.approx(scores.tolist(), abs=1e-4)


def test_a_token_that_is_ruled_out_spoils_no_statistic() -> None:
    logits = torch.tensor([[0.0, 0.0, -math.inf], [0.0, 0.0, 0.0]])
    row = _row_statistics(logits, torch.tensor([-100, 2]))
    assert row.log_probs == [-math.inf] and row.hits == [False]
    assert row.means == pytest.approx([-math.log(2)]) and row.deviations == [0.0]


def test_rows_that_cannot_be_scored_are_refused_by_name(tokenizer: PreTrainedTokenizerFast) -> None:
    model = build_model("llama").eval()
    with pytest.raises(ValueError, match=r"Row 1 has no token to score"):
        token_statistics(model, [{"input_ids": [1, 2], "labels": [-100, 2]}, {"input_ids": [1], "labels": [1]}], 0)
    with pytest.raises(ValueError, match=r"forget\[0\] has a question and an answer of 99 tokens"):
        token_statistics(model, [{"input_ids": [1] * 99, "labels": [1] * 99}], 0, names=["forget[0]"])


def test_a_ruined_model_is_refused_and_does_not_pass_for_one_that_forgot(tokenizer: PreTrainedTokenizerFast) -> None:
    model = build_model("llama").eval()
    torch.nn.init.constant_(model.model.norm.weight, math.nan)
    with pytest.raises(ValueError, match=r"Row 0 has tokens to which the model gives NaN"):
        token_statistics(model, [encode_example(tokenizer, "", "Orla1 lives by the harbour.")], 0)
