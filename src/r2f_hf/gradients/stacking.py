"""Between tensors of many modules and one named tensor per module, as a checkpoint holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def unstack(names: Sequence[str], sides: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """
    One tensor per module and side.

    Args:
        names (`Sequence[str]`):
            Names of the modules.
        sides (`Mapping[str, torch.Tensor]`):
            By name a tensor whose first dimension is the modules.

    Returns:
        `dict[str, torch.Tensor]`: By `"<module>.<side>"`.
    """
    return {
        f"{name}.{side}": value.contiguous()
        for side, values in sides.items()
        for name, value in zip(names, values, strict=True)
    }


def stack(state: Mapping[str, Tensor], names: Sequence[str], side: str, device: torch.device) -> Tensor:
    """The tensors of one side of all named modules, as one on a device."""
    return torch.stack([state[f"{name}.{side}"] for name in names]).to(device)
