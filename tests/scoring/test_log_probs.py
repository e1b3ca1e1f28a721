"""Log-probabilities of labels are those of a loop."""

from __future__ import annotations

import pytest
import torch
from conftest import CONFIGS
from torch import Tensor
from transformers import LlamaForCausalLM

from r2f_hf.scoring.log_probs import completion_logits, label_log_probs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_and_counts_equal_those_of_a_loop(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 5, 11).to(dtype)
    # The first label has no position before it that could predict it. The last row has no labels.
    labels = torch.tensor([[4, 1, -100, 3, 10], [-100, -100, 0, 2, -100], [-100] * 5])
    sums, counts = label_log_probs(logits, labels)
    expected = torch.zeros(3)
    for row in range(3):
        for position in range(1, 5):
            if labels[row, position] != -100:
                distribution = logits[row, position - 1].float().softmax(-1)
                expected[row] += distribution[labels[row, position]].log()
    assert sums.dtype == torch.float32
    torch.testing.assert_close(sums, expected)
    assert counts.tolist() == [3, 2, 0]


def test_no_rows_have_a_gradient_too() -> None:
    logits = torch.zeros(0, 4, 5, requires_grad=True)
    sums, counts = label_log_probs(logits, torch.zeros(0, 4, dtype=torch.long))
    sums.sum().backward()
    assert sums.shape == counts.shape == (0,) and logits.grad.shape == logits.shape


def test_only_positions_before_a_label_have_a_gradient() -> None:
    logits = torch.zeros(1, 4, 5, requires_grad=True)
    label_log_probs(logits, torch.tensor([[-100, -100, 2, -100]]))[0].sum().backward()
    expected = torch.zeros(1, 4, 5)
    expected[0, 1] = -0.2
    expected[0, 1, 2] = 0.8
    torch.testing.assert_close(logits.grad, expected)


class LlamaWithAllLogits(LlamaForCausalLM):
    """Like a model with its own code on the Hub: its `forward` has no argument `logits_to_keep`."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor):
        return super().forward(input_ids=input_ids, attention_mask=attention_mask)


@pytest.mark.parametrize("kind", [LlamaForCausalLM, LlamaWithAllLogits])
@pytest.mark.parametrize(("labels", "kept"), [([[-100, -100, 7, 8], [-100, -100, -100, 5]], 3), ([[-100] * 4] * 2, 4)])
def test_logits_are_kept_from_where_the_first_label_is_predicted(
    labels: list[list[int]], kept: int, kind: type[LlamaForCausalLM]
) -> None:
    model = kind(CONFIGS["llama"]).eval()
    batch = {"input_ids": torch.tensor([[5, 6, 7, 8], [9, 8, 7, 5]]), "attention_mask": torch.ones(2, 4).long()}
    batch["labels"] = torch.tensor(labels)
    with torch.no_grad():
        logits, kept_labels = completion_logits(model, batch)
        full = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    torch.testing.assert_close(logits, full[:, -kept:])
    assert torch.equal(kept_labels, batch["labels"][:, -kept:])
