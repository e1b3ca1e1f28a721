"""Logit lens: reading the answer off the layers before the last one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .base import UNATTACKED, Attack, Target, Values, mean


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The layers of a model's decoder: its longest list of modules."""
    lists = [module for module in model.get_decoder().modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len)


@contextmanager
def last_output_from(layers: nn.ModuleList, index: int) -> Iterator[None]:
    """Within it the model's last layer puts out what the layer `index` does, so that norm and head read that."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        kept[:] = [output[0] if isinstance(output, tuple) else output]

    def replace(module: nn.Module, args: Any, output: Any) -> Any:
        return (kept[0], *output[1:]) if isinstance(output, tuple) else kept[0]

    hooks = [layers[index].register_forward_hook(keep), layers[-1].register_forward_hook(replace)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def read_layers(target: Target) -> Values:
    """Probability of the forget rows by the head's reading of each layer, and of the best one."""
    layers = decoder_layers(target.model)
    values = {UNATTACKED: target.probabilities()}
    for index in range(len(layers) - 1):
        with last_output_from(layers, index):
            values[f"layer {index + 1}"] = target.probabilities()
    best = max((name for name in values if name != UNATTACKED), key=lambda name: mean(values[name]))
    return {UNATTACKED: values[UNATTACKED], "best layer": values[best]} | values


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
