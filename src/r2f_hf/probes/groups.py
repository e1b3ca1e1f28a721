"""Groups of probes of one shape, which are read and drawn together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..distributed.sharding import copy_all_, gathered
from ..gradients import LoraSketch, named_generator
from ..gradients.stacking import stack, unstack
from .drawing import draw_probes
from .lora_probe import LoraProbe
from .subspace import GradientSubspace


# Number of rows of a warm probe that are always random: they are what finds new directions.
RANDOM_ROWS = 2


class ProbeGroup:
    """
    Probes of one shape, and the subspaces that the gradients of their modules have lain in so far.

    A model has hundreds of modules of a few shapes. Hundreds of small operations take longer than a few larger ones,
    on a GPU and on a CPU. So the tensors of a group are stacked: their first dimension is its modules.

    Args:
        probes (`Sequence[LoraProbe]`):
            Probes of one rank, scaling and device, on modules of one shape. The modules' weights have one dtype and
            one memory layout.

    Attributes:
        subspace ([`GradientSubspace`], *optional*):
            The subspaces of the modules' gradients so far. The next probes are drawn along them.
    """

    def __init__(self, probes: Sequence[LoraProbe]):
        self.probes = probes
        self.subspace: GradientSubspace | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """`(out_features, in_features)` of the modules."""
        layer = self.probes[0].layer
        return layer.out_features, layer.in_features

    @torch.no_grad()
    def read(self, held_out: int) -> LoraSketch:
        """
        Read the sketches from the gradients that the pairs hold now.

        The probes are copied, because the optimizer is about to change them. All processes have to call this.

        Args:
            held_out (`int`):
                Number of the last rows of `A` that the decoder does not see.

        Returns:
            [`LoraSketch`]: The sketches of all modules, with the modules as their first dimension.

        Raises:
            `RuntimeError`: If a pair has no gradient.
        """
        grad_A, grad_B = zip(*(probe.gradients() for probe in self.probes), strict=True)
        A, B = ([gathered(getattr(probe, side)) for probe in self.probes] for side in "AB")
        scaling = self.probes[0].layer.scaling[self.probes[0].adapter]
        # The stacks are copies, and are scaled in place.
        Z, Y = (torch.stack(grads).float().div_(scaling) for grads in (grad_A, grad_B))
        return LoraSketch(Y, Z, torch.stack(A).float(), torch.stack(B).float(), held_out)

    @torch.no_grad()
    def draw(self, seed: int, step: int, held_out: int = 0) -> None:
        """
        Overwrite the pairs with the probes of a step: along the subspaces if there are any, and otherwise random.

        Args:
            seed (`int`):
                Seed of the run.
            step (`int`):
                Optimizer step.
            held_out (`int`, *optional*, defaults to `0`):
                Number of the last rows of `A` that are always random.
        """
        rank, device = self.probes[0].rank, self.probes[0].A.device
        if self.subspace is None:
            pairs = [draw_probes(seed, step, probe.name, *self.shape, rank, device) for probe in self.probes]
            A, B = map(torch.stack, zip(*pairs, strict=True))
        else:
            A, B = self._draw_warm(seed, step, min(rank, max(held_out, RANDOM_ROWS)), rank, device)
        copy_all_([probe.A for probe in self.probes], A)
        copy_all_([probe.B for probe in self.probes], B)

    def _draw_warm(
        self, seed: int, step: int, random_rows: int, rank: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Draw probes along the subspaces. The last rows of `A` are random."""
        # Random vectors replace the directions that are only rounding. These may be the same for all modules.
        A, B = draw_probes(seed, step, "x".join(map(str, self.shape)), *self.shape, rank, device)
        count, (_, columns) = len(self.probes), self.shape
        A, B = self.subspace.probes(A.expand(count, -1, -1), B.expand(count, -1, -1), random_rows)
        # The first module's name seeds the draw, so that another group of this shape draws other numbers.
        generator = named_generator(seed, step, self.probes[0].name, "random rows", device)
        A[:, rank - random_rows :] = (
            torch.randn(count, random_rows, columns, generator=generator, device=device) * columns**-0.5
        )
        return A, B

    def state_dict(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The subspaces of each module by name. Empty if there are none yet."""
        if self.subspace is None:
            return {}
        return unstack(names, {"left": self.subspace.left, "right": self.subspace.right})

    def load_state_dict(self, state: Mapping[str, Tensor], names: Sequence[str], device: torch.device) -> None:
        """
        Load the subspaces of the named modules. If one of them has none in `state`, none are loaded.

        Raises:
            `ValueError`: If the subspaces belong to probes of another rank.
        """
        if not all(f"{name}.left" in state for name in names):
            return
        for name in names:
            rank = state[f"{name}.left"].shape[1]
            if rank != self.probes[0].rank:
                raise ValueError(
                    f"The checkpoint is of probes of rank {rank}, {name} has rank {self.probes[0].rank}. Resume with "
                    "the old rank, or start a new run."
                )
        self.subspace = GradientSubspace(*(stack(state, names, side, device) for side in ("left", "right")))


def update_subspaces(groups: Sequence[ProbeGroup], sketches: Sequence[LoraSketch]) -> None:
    """Update the subspaces of the groups with the sketches of a step."""
    updated = GradientSubspace.after_all(sketches, [group.subspace for group in groups])
    for group, subspace in zip(groups, updated, strict=True):
        # They stay in fp32. In fp16, a number halfway between two neighbours would be rounded up in one run, and down
        # in another that differs by 1e-7. The probes of the two runs would differ by 1e-5, a hundred times as much.
        group.subspace = subspace


def group_probes(probes: Sequence[LoraProbe]) -> list[ProbeGroup]:
    """
    Group probes by the shape of their modules, and by how the weights are stored.

    Args:
        probes (`Sequence[LoraProbe]`):
            Any probes.

    Returns:
        `list[ProbeGroup]`: The groups, in the order of their first probes.
    """
    groups: dict[Any, list[LoraProbe]] = {}
    for probe in probes:
        layer = probe.layer
        key = (layer.out_features, layer.in_features, probe.rank, layer.scaling[probe.adapter], probe.A.device)
        # Weights of one dtype and layout are written together. (Some of PEFT's quantised layers name no layout.)
        key += probe.weight.dtype, getattr(layer, "fan_in_fan_out", False)
        groups.setdefault(key, []).append(probe)
    return [ProbeGroup(group) for group in groups.values()]
