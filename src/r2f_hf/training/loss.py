"""The loss of a batch: a forget part and a retain part, each as a share of the mean over the global batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..data.formatting import IGNORE_INDEX
from ..objectives import ForgetInputs, ForgetObjective, RetainInputs, RetainObjective
from ..scoring import completion_outputs, token_log_probs
from .references import References


# What the means of the losses are taken over, in the order of `count_items`.
COUNTED = ("rows", "tokens", "second_tokens", "retain_tokens")


def count_items(batch: dict[str, Tensor]) -> Tensor:
    """
    Count what the means of the losses are taken over.

    Args:
        batch (`dict[str, torch.Tensor]`):
            A batch of [`ForgetRetainCollator`] with `is_forget`.

    Returns:
        `torch.Tensor` of shape `(4,)`: The numbers of forget rows, of their tokens, of tokens of second answers and of
        retain tokens, int64. Only tokens with a label count.
    """
    tokens = (batch["labels"][:, 1:] != IGNORE_INDEX).sum(1)
    is_forget, is_second, is_retain = _sets(batch)
    return torch.stack([is_forget.sum(), *(tokens[chosen].sum() for chosen in (is_forget, is_second, is_retain))])


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
        counts (`torch.Tensor` of shape `(4,)`):
            [`count_items`] of the global batch: all micro-batches of the step, on all processes.
        all_logits (`bool`, *optional*, defaults to `False`):
            Whether to compute the logits of the prompts too. The losses do not need them.

    Returns:
        `tuple[dict[str, torch.Tensor], torch.Tensor]`: The parts and the logits. The parts are `forget_loss` and, with
        a retain objective, `retain_loss`, each of shape `()`. The logits have the shape `(rows, kept, vocabulary)`.
    """
    is_forget, is_second, is_retain = _sets(batch)
    objectives = [each for each in (forget_objective, retain_objective) if each is not None]
    layers = {each.layer for each in objectives if each.needs_hidden_states}
    logits, labels, states = completion_outputs(model, batch, layers, all_logits)
    # `first_items` may leave a row without labels, which only keeps the forward pass going. It has no reference.
    labelled = (labels[:, 1:] != IGNORE_INDEX).any(1)

    def looked_up(name: str, chosen: Tensor) -> Tensor | None:
        return references.of_rows(name, batch["row"][chosen & labelled])

    def hidden_states(objective: ForgetObjective | RetainObjective, chosen: Tensor) -> Tensor | None:
        """A layer's outputs at the labelled tokens, which have read these tokens."""
        if not objective.needs_hidden_states:
            return None
        return states[objective.layer][:, 1:][(labels[:, 1:] != IGNORE_INDEX) & chosen[:, None]]

    def forget_inputs(name: str, chosen: Tensor) -> ForgetInputs:
        log_probs, rows = token_log_probs(logits[chosen], labels[chosen])
        inputs = ForgetInputs(log_probs, rows, int(chosen.sum()), looked_up(f"{name}_log_probs", chosen))
        if forget_objective.needs_logits:
            positions = (labels[:, 1:] != IGNORE_INDEX) & chosen[:, None]
            # Position `t` predicts label `t + 1`.
            inputs.labels, inputs.logits = labels[:, 1:][positions], logits[:, :-1][positions]
        inputs.reference_top_ids = looked_up(f"{name}_top_ids", chosen)
        inputs.reference_top_log_probs = looked_up(f"{name}_top_log_probs", chosen)
        return inputs

    inputs = forget_inputs("forget", is_forget)
    inputs.hidden_states = hidden_states(forget_objective, is_forget)
    inputs.reference_norms = looked_up("forget_norms", is_forget)
    inputs.ignorant_log_probs = looked_up("forget_ignorance", is_forget)
    if forget_objective.needs_holdout_margin:
        inputs.holdout_margin = references.tensors["holdout_margin"].to(logits.device)
    if forget_objective.answers is not None:
        inputs.second = forget_inputs("second", is_second)
    losses = forget_objective(inputs)
    if not isinstance(losses, Mapping):
        losses = {forget_objective.mean_over: losses}
    number_of = dict(zip(COUNTED, counts.unbind(), strict=True))
    parts = {"forget_loss": sum(values.sum() / number_of[over] for over, values in losses.items())}
    if retain_objective is not None:
        losses = retain_objective(
            RetainInputs(
                logits[is_retain],
                labels[is_retain],
                looked_up("retain_top_ids", is_retain),
                looked_up("retain_top_log_probs", is_retain),
                hidden_states(retain_objective, is_retain),
                looked_up("retain_hidden_states", is_retain),
            )
        )
        parts["retain_loss"] = losses.sum() / number_of["retain_tokens"]
    if states:
        # A loss on a layer's outputs does not reach the layers above. Their gradient is then zero, and not missing.
        parts["forget_loss"] = parts["forget_loss"] + 0 * logits[:, -1, 0].sum()
    return parts, logits


def _sets(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Which rows of a batch are forget rows, second answers and retain rows."""
    is_forget = batch["is_forget"]
    is_second = batch.get("is_second", torch.zeros_like(is_forget))
    return is_forget, is_second, ~is_forget & ~is_second
