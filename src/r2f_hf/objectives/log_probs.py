"""Log-probabilities of labels under a model's logits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def label_log_probs(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """
    Log-probability of each row's labelled tokens, summed.

    Args:
        logits (`torch.Tensor` of shape `(rows, length, vocabulary)`):
            The model's output.
        labels (`torch.Tensor` of shape `(rows, length)`):
            Token ids; -100 where there is nothing to predict. Shifted here: position `t` predicts label `t + 1`.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Summed log-probabilities (fp32, natural logarithm) and numbers of labelled
        tokens, each of shape `(rows,)`.
    """
    targets = labels[:, 1:]
    rows, positions = (targets != -100).nonzero(as_tuple=True)
    token_log_probs = -F.cross_entropy(logits[rows, positions].float(), targets[rows, positions], reduction="none")
    sums = token_log_probs.new_zeros(len(labels)).index_add(0, rows, token_log_probs)
    return sums, (targets != -100).sum(dim=1)
