"""The loss of a batch: a forget part and a retain part, each as a share of the mean over the global batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..data.formatting import IGNORE_INDEX
from ..objectives import ForgetInputs, ForgetObjective, RetainInputs, RetainObjective
from ..scoring import completion_logits, token_log_probs
from .references import References


def count_items(batch: dict[str, Tensor]) -> Tensor:
    """
    Count what the means of the losses are taken over.

    Args:
        batch (`dict[str, torch.Tensor]`):
            A batch of [`ForgetRetainCollator`] with `is_forget`.

    Returns:
        `torch.Tensor` of shape `(3,)`: The numbers of forget rows, forget tokens and retain tokens, int64. Only tokens
        with a label count.
    """
    tokens = (batch["labels"][:, 1:] != IGNORE_INDEX).sum(1)
    is_forget = batch["is_forget"]
    return torch.stack([is_forget.sum(), tokens[is_forget].sum(), tokens[~is_forget].sum()])


def forget_retain_loss(
    model: nn.Module,
    batch: dict[str, Tensor],
    forget_objective: ForgetObjective,
    retain_objective: RetainObjective | None,
    references: References,
    counts: Tensor,
    all_logits: bool = False,
) -> tuple[dict[str, Tensor], Tensor]:
    """
    Compute the forget and the retain part of a batch's loss in one forward pass.

    Args:
        model (`nn.Module`):
            A causal language model.
        batch (`dict[str, torch.Tensor]`):
            A batch of [`ForgetRetainCollator`] with `is_forget` and `row`.
        forget_objective ([`ForgetObjective`]):
            What is minimised on the forget rows.
        retain_objective ([`RetainObjective`], *optional*):
            What is minimised on the retain rows. Without it there is no retain part.
        references ([`References`]):
            What the model said before unlearning.
        counts (`torch.Tensor` of shape `(3,)`):
            [`count_items`] of the global batch: all micro-batches of the step, on all processes.
        all_logits (`bool`, *optional*, defaults to `False`):
            Whether to compute the logits of the prompts too. The losses do not need them.

    Returns:
        `tuple[dict[str, torch.Tensor], torch.Tensor]`: The parts and the logits. The parts are `forget_loss` and, with
        a retain objective, `retain_loss`, each of shape `()`. The logits have the shape `(rows, kept, vocabulary)`.
    """
    is_forget = batch["is_forget"]
    num_rows, num_forget_tokens, num_retain_tokens = counts.unbind()
    if all_logits:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        labels = batch["labels"]
    else:
        logits, labels = completion_logits(model, batch)
    # `first_items` may leave a row without labels, which only keeps the forward pass going. It has no reference.
    labelled = (labels[:, 1:] != IGNORE_INDEX).any(1)

    log_probs, rows = token_log_probs(logits[is_forget], labels[is_forget])
    reference = references.of_rows("forget_log_probs", batch["row"][is_forget & labelled])
    losses = forget_objective(ForgetInputs(log_probs, rows, int(is_forget.sum()), reference))
    denominator = {"rows": num_rows, "tokens": num_forget_tokens}[forget_objective.mean_over]
    parts = {"forget_loss": losses.sum() / denominator}
    if retain_objective is not None:
        top = [
            references.of_rows(name, batch["row"][~is_forget & labelled])
            for name in ("retain_top_ids", "retain_top_log_probs")
        ]
        losses = retain_objective(RetainInputs(logits[~is_forget], labels[~is_forget], *top))
        parts["retain_loss"] = losses.sum() / num_retain_tokens
    return parts, logits
