"""Logit lens: reading the answer off the layers before the last one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from ..data.collator import ForgetRetainCollator
from ..data.formatting import IGNORE_INDEX
from ..scoring import completion_logits, label_log_probs
from ..scoring.completions import over_processes
from .base import UNATTACKED, Attack, Target, Values, mean, row_probabilities


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The layers of a model's decoder: its longest list of modules."""
    lists = [module for module in model.get_decoder().modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len)


@contextmanager
def outputs_kept(layers: nn.ModuleList) -> Iterator[list[Any]]:
    """Within it a pass of the model leaves what each layer puts out in the list."""
    outputs: list[Any] = [None] * len(layers)

    def keep(index: int) -> Any:
        return lambda module, args, output: outputs.__setitem__(index, output)

    hooks = [layer.register_forward_hook(keep(index)) for index, layer in enumerate(layers)]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def layers_replaced(layers: nn.ModuleList, outputs: list[Any]) -> Iterator[None]:
    """Within it no layer computes anything. Each puts out what is in the list, so that norm and head read the last."""

    def put_out(index: int) -> Any:
        return lambda *args, **kwargs: outputs[index]

    for index, layer in enumerate(layers):
        layer.forward = put_out(index)
    try:
        yield
    finally:
        for layer in layers:
            # The method of the class shows again.
            del layer.forward


@torch.no_grad()
def read_layers(target: Target) -> Values:
    """
    Probability of the forget rows by the head's reading of each layer, and of the best one.

    The layers compute once. For each of them only the embeddings, the norm and the head run again.
    """
    model, examples = target.model, target.forget
    layers, collator = decoder_layers(model), ForgetRetainCollator(target.padding)
    names = [f"layer {index + 1}" for index in range(len(layers) - 1)] + [UNATTACKED]

    def read(batch: list[int]) -> list[tuple[float, ...]]:
        inputs = {name: value.to(model.device) for name, value in collator([examples[i] for i in batch]).items()}
        with outputs_kept(layers) as outputs:
            last = completion_logits(model, inputs)
        columns = []
        for output in outputs[:-1]:
            with layers_replaced(layers, [*outputs[:-1], output]):
                columns.append(label_log_probs(*completion_logits(model, inputs))[0].tolist())
        columns.append(label_log_probs(*last)[0].tolist())
        return list(zip(*columns, strict=True))

    order = sorted(range(len(examples)), key=lambda index: -len(examples[index]["input_ids"]))
    log_probs = np.array(over_processes(read, order, target.batch_size, disable=True))
    tokens = np.array([sum(label != IGNORE_INDEX for label in example["labels"][1:]) for example in examples])
    values = {
        name: row_probabilities(column, tokens, examples) for name, column in zip(names, log_probs.T, strict=True)
    }
    best = max(names[:-1], key=lambda name: mean(values[name]))
    return {UNATTACKED: values.pop(UNATTACKED), "best layer": values[best]} | values


def does_not_fit(target: Target) -> str | None:
    """Why there are no layers to read, or `None`."""
    try:
        layers = decoder_layers(target.model)
    except (AttributeError, ValueError):
        return "the model has no list of decoder layers"
    return None if len(layers) > 1 else "the model has a single layer"


LOGIT_LENS = Attack(
    meaning="Reading the layers before the last one through the model's own head shows this much.",
    quantity="probability",
    run=read_layers,
    does_not_fit=does_not_fit,
)
