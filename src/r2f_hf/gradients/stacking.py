"""From stacked tensors of many modules to one named tensor per module, as a checkpoint holds them, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def unstack(names: Sequence[str], sides: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """
    Split stacked tensors into one named tensor per module and side.

    Args:
        names (`Sequence[str]`):
            Names of the modules.
        sides (`Mapping[str, torch.Tensor]`):
            For each side, a tensor whose first dimension is the modules.

    Returns:
        `dict[str, torch.Tensor]`: The tensors by `"<module>.<side>"`.
    """
    return {
        f"{name}.{side}": value.contiguous()
        for side, values in sides.items()
        for name, value in zip(names, values, strict=True)
    }


def stack(state: Mapping[str, Tensor], names: Sequence[str], side: str, device: torch.device) -> Tensor:
    """Stack the tensors of one side of all named modules into one tensor on a device."""
    return torch.stack([state[f"{name}.{side}"] for name in names]).to(device)
