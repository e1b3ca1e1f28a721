"""Log-probabilities of labels under a model's logits."""

from __future__ import annotations

import inspect

import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from torch import Tensor, nn


def completion_logits(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """
    A model's logits from where the first label of the batch is predicted on: those of the prompts serve nothing, and
    logits are the largest tensor of a forward pass.

    Args:
        model (`nn.Module`):
            A causal language model.
        batch (`dict[str, torch.Tensor]`):
            `input_ids`, `attention_mask` and `labels` of shape `(rows, length)`, padded on the right.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Logits of shape `(rows, kept, vocabulary)` and the labels of the same
        positions, `(rows, kept)`.
    """
    labels = batch["labels"]
    # The first token has nothing before it that could predict it.
    labelled = (labels[:, 1:] != -100).any(0).nonzero()
    kept = labels.shape[1] - (int(labelled[0]) if len(labelled) else 0)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    if "logits_to_keep" in forward_parameters(model):
        inputs["logits_to_keep"] = kept
    return model(**inputs).logits[:, -kept:], labels[:, -kept:]


def forward_parameters(model: nn.Module) -> set[str]:
    """Names of the arguments that a model's own `forward` takes, whatever it is wrapped in."""
    model = extract_model_from_parallel(model, keep_torch_compile=False)
    if isinstance(model, PeftModel):
        model = model.get_base_model()
    return set(inspect.signature(type(model).forward).parameters)


def token_log_probs(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """
    Log-probability of each labelled token.

    Args:
        logits (`torch.Tensor` of shape `(rows, length, vocabulary)`):
            The model's output.
        labels (`torch.Tensor` of shape `(rows, length)`):
            Token ids; -100 where there is nothing to predict. Shifted here: position `t` predicts label `t + 1`.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Log-probabilities (fp32, natural logarithm) and the rows that the tokens
        are of (int64), each of shape `(tokens,)`, row by row.
    """
    targets = labels[:, 1:]
    losses = []
    # Row by row: a copy of all logits at once would be the largest tensor of the pass, and on a CPU slow to come by.
    # (Of no rows at all `split` makes one piece, so that there is something to take a gradient of.)
    for row, target in zip(logits.split(1), targets.split(1), strict=True):
        labelled = (target != -100).nonzero(as_tuple=True)
        losses.append(F.cross_entropy(row[labelled].float(), target[labelled], reduction="none"))
    return -torch.cat(losses), (targets != -100).nonzero()[:, 0]


def label_log_probs(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """
    [`token_log_probs`] summed over each row.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Summed log-probabilities and numbers of labelled tokens, each of shape
        `(rows,)`.
    """
    log_probs, rows = token_log_probs(logits, labels)
    return row_sums(log_probs, rows, len(labels)), (labels[:, 1:] != -100).sum(dim=1)


def row_sums(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Sums `(count,)` of tokens' values `(tokens,)` over the rows that they are of."""
    return values.new_zeros(count).index_add(0, rows, values)
