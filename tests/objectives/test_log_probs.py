"""Log-probabilities of labels against a loop."""

from __future__ import annotations

import pytest
import torch

from r2f_hf.objectives import label_log_probs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_and_counts_equal_those_of_a_loop(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 5, 11).to(dtype)
    # The first position has nothing before it that could predict it; the last row has no label at all.
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


def test_only_positions_before_a_label_have_a_gradient() -> None:
    logits = torch.zeros(1, 4, 5, requires_grad=True)
    label_log_probs(logits, torch.tensor([[-100, -100, 2, -100]]))[0].sum().backward()
    expected = torch.zeros(1, 4, 5)
    expected[0, 1] = -0.2
    expected[0, 1, 2] = 0.8
    torch.testing.assert_close(logits.grad, expected)
