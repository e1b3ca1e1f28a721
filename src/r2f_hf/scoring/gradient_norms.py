"""How large the gradient of each row is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from ..data.collator import ForgetRetainCollator
from .completions import check_examples, over_processes
from .log_probs import completion_logits, label_log_probs


def gradient_norms(
    model: nn.Module,
    examples: Sequence[dict[str, Any]],
    padding: int,
    desc: str | None = None,
    names: Sequence[str] | None = None,
    disable: bool = False,
) -> list[list[float]]:
    """
    Compute the norm of each parameter's gradient of a row's mean loss per token.

    Rows are read one by one, since a batch would add up their gradients. The parameters' own gradients, and whether
    they ask for any, stay as they are.

    Args:
        model (`nn.Module`):
            The model. It is used on its own device and in its own mode (training or evaluation).
        examples (`Sequence[dict]`):
            Encoded examples with `input_ids` and `labels`. Labels are -100 where nothing is scored.
        padding (`int`):
            Id to pad with.
        desc (`str`, *optional*):
            Title of the progress bar.
        names (`Sequence[str]`, *optional*):
            Names of the rows for error messages. Defaults to their numbers.
        disable (`bool`, *optional*, defaults to `False`):
            Whether to show no progress bar.

    Returns:
        `list[list[float]]`: For each row, a 2-norm per parameter, in the order of `named_parameters`. All processes
        get all rows.

    Raises:
        `ValueError`: If a row is longer than the model's context or has nothing to score, or if weights are sharded.
    """
    check_examples(model, examples, names)
    parameters = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    if any(isinstance(parameter, DTensor) or parameter.numel() == 0 for parameter in parameters):
        raise ValueError(
            "The gradient norms of a row need whole weights on each process, and these are sharded: their gradients "
            "are added up over the processes' rows. Leave out the gradnorm attack, or run it on one process."
        )
    collator = ForgetRetainCollator(padding)

    def norms(batch: list[int]) -> list[list[float]]:
        inputs = {name: values.to(parameters[0].device) for name, values in collator([examples[batch[0]]]).items()}
        with torch.enable_grad():
            log_probs, tokens = label_log_probs(*completion_logits(model, inputs))
            loss = (-log_probs / tokens).sum()
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        return [[0.0 if gradient is None else gradient.float().norm().item() for gradient in gradients]]

    required = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        return over_processes(norms, range(len(examples)), 1, desc, disable)
    finally:
        for parameter, before in zip(parameters, required, strict=True):
            parameter.requires_grad_(before)
