"""Log-probabilities of labels under a model's logits."""

from __future__ import annotations

import inspect
from collections.abc import Collection

import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from torch import Tensor, nn


def completion_logits(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """
    Run a model, and keep the logits from the position on that predicts the first label of the batch.

    Args:
        model (`nn.Module`):
            A causal language model.
        batch (`dict[str, torch.Tensor]`):
            `input_ids`, `attention_mask` and `labels` of shape `(rows, length)`, padded on the right. Labels are -100
            where there is nothing to predict.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: The logits of shape `(rows, kept, vocabulary)`, and the labels of the same
        positions, of shape `(rows, kept)`.
    """
    logits, labels, _ = completion_outputs(model, batch)
    return logits, labels


def completion_outputs(
    model: nn.Module, batch: dict[str, Tensor], layers: Collection[int] = (), all_positions: bool = False
) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
    """
    Run a model, and keep what it makes of a batch from the position on that predicts the first label.

    Nothing needs the logits of the prompts, and logits are the largest tensor of a forward pass.

    Args:
        model (`nn.Module`):
            A causal language model.
        batch (`dict[str, torch.Tensor]`):
            As in [`completion_logits`].
        layers (`Collection[int]`, *optional*):
            Layers whose outputs are kept too, counted from 1.
        all_positions (`bool`, *optional*, defaults to `False`):
            Whether to keep all positions.

    Returns:
        `tuple[torch.Tensor, torch.Tensor, dict[int, torch.Tensor]]`: The logits, the labels, and by layer its outputs
        of shape `(rows, kept, hidden size)`.
    """
    labels = batch["labels"]
    # No position before the first token could predict it, so its label does not count.
    labelled = (labels[:, 1:] != -100).any(0).nonzero()
    kept = labels.shape[1] - (int(labelled[0]) if len(labelled) and not all_positions else 0)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    if "logits_to_keep" in forward_parameters(model) and not all_positions:
        inputs["logits_to_keep"] = kept
    if layers:
        inputs["output_hidden_states"] = True
    outputs = model(**inputs)
    states = {layer: outputs.hidden_states[layer][:, -kept:] for layer in layers}
    return outputs.logits[:, -kept:], labels[:, -kept:], states


def forward_parameters(model: nn.Module) -> set[str]:
    """
    Find the names of the arguments that a model's own `forward` takes.

    Args:
        model (`nn.Module`):
            The model. It may be wrapped in DDP, `torch.compile` or adapters.

    Returns:
        `set[str]`
    """
    model = extract_model_from_parallel(model, keep_torch_compile=False)
    if isinstance(model, PeftModel):
        model = model.get_base_model()
    return set(inspect.signature(type(model).forward).parameters)


def token_log_probs(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """
    Compute the log-probability of each labelled token.

    Args:
        logits (`torch.Tensor` of shape `(rows, length, vocabulary)`):
            The model's output.
        labels (`torch.Tensor` of shape `(rows, length)`):
            Token ids; -100 where there is nothing to predict. They are not shifted yet: position `t` predicts label
            `t + 1`.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: The log-probabilities (fp32, natural logarithm), and the row that each
        token belongs to (int64). Both have the shape `(tokens,)`, row by row.
    """
    targets = labels[:, 1:]
    losses = []
    # Row by row: an fp32 copy of all logits would be the largest tensor of the pass, and slow to make on a CPU. (If
    # there are no rows, `split` still gives one empty piece, so that the result has a gradient.)
    for row, target in zip(logits.split(1), targets.split(1), strict=True):
        labelled = (target != -100).nonzero(as_tuple=True)
        losses.append(F.cross_entropy(row[labelled].float(), target[labelled], reduction="none"))
    return -torch.cat(losses), (targets != -100).nonzero()[:, 0]


def label_log_probs(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """
    Sum [`token_log_probs`] over each row.

    Args:
        logits (`torch.Tensor` of shape `(rows, length, vocabulary)`):
            The model's output.
        labels (`torch.Tensor` of shape `(rows, length)`):
            Token ids; -100 where there is nothing to predict.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: The summed log-probabilities (fp32, natural logarithm) and the numbers of
        labelled tokens (int64), each of shape `(rows,)`.
    """
    log_probs, rows = token_log_probs(logits, labels)
    return row_sums(log_probs, rows, len(labels)), (labels[:, 1:] != -100).sum(dim=1)


def row_sums(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """
    Sum the tokens' values over each row.

    Args:
        values (`torch.Tensor` of shape `(tokens,)`):
            A value per token.
        rows (`torch.Tensor` of shape `(tokens,)`):
            The row that each token belongs to, int64.
        count (`int`):
            Number of rows.

    Returns:
        `torch.Tensor` of shape `(count,)`: 0 for rows without tokens.
    """
    return values.new_zeros(count).index_add(0, rows, values)
