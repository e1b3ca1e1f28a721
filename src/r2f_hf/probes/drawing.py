"""Drawing the random probes of a module."""

from __future__ import annotations

import torch
from torch import Tensor

from ..gradients import named_generator


def draw_probes(
    seed: int,
    step: int,
    module_name: str,
    out_features: int,
    in_features: int,
    rank: int,
    device: str | torch.device = "cpu",
) -> tuple[Tensor, Tensor]:
    """
    Draw the Gaussian probes of one module for one step.

    Both sides are random. PEFT's default `B = 0` would make the left sketch zero and leave only a projection of the
    gradient onto the rows of `A`.

    Args:
        seed (`int`):
            Seed of the run.
        step (`int`):
            Optimizer step.
        module_name (`str`):
            Name of the module in the model.
        out_features (`int`):
            Rows of the weight.
        in_features (`int`):
            Columns of the weight.
        rank (`int`):
            Rank `r` of the LoRA pair.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`):
            Device to draw on. Devices of one kind draw the same numbers.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: `A` of shape `(rank, in_features)` with entries `N(0, 1/in_features)` and
        `B` of shape `(out_features, rank)` with entries `N(0, 1/out_features)`; fp32.
    """
    generator = named_generator(seed, step, module_name, "probes", device)
    A = torch.randn(rank, in_features, generator=generator, device=device) / in_features**0.5
    B = torch.randn(out_features, rank, generator=generator, device=device) / out_features**0.5
    return A, B
