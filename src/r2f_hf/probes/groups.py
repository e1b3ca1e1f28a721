"""Probes of one shape, which are read, followed and drawn in one go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..distributed.sharding import copy_all_, gathered
from ..gradients import LoraSketch, LowRankGradient, named_generator, named_seed
from ..updates import RetainedInputs, SecondMoments, add_low_rank_all_
from ..updates.retained_inputs import spare
from .drawing import draw_probes
from .lora_probe import LoraProbe
from .subspace import GradientSubspace


# Rows of a warm probe that are random in any case: by them new directions are found.
RANDOM_ROWS = 2


class ProbeGroup:
    """
    Probes of one shape, and what is remembered of their modules' gradients.

    A model has hundreds of modules of a few shapes; on a GPU, and on a CPU too, hundreds of small operations take
    longer than a few larger ones. All tensors of a group have its modules as their first dimension.

    Args:
        probes (`Sequence[LoraProbe]`):
            Probes of modules of one shape, with one rank, scaling and device, whose weights are stored alike.

    Attributes:
        subspace ([`GradientSubspace`], *optional*):
            What the modules' gradients have been like so far; the next probes are drawn from it.
        moments ([`SecondMoments`], *optional*):
            Mean squares of their rows and columns so far, by which updates are evened out.
        retained (`list[RetainedInputs]`, *optional*):
            What the retain set puts into each module, which updates leave alone.
    """

    def __init__(self, probes: Sequence[LoraProbe]):
        self.probes = probes
        self.subspace: GradientSubspace | None = None
        self.moments: SecondMoments | None = None
        self.retained: list[RetainedInputs] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """`(out_features, in_features)` of the modules."""
        layer = self.probes[0].layer
        return layer.out_features, layer.in_features

    @torch.no_grad()
    def read(self, held_out: int) -> LoraSketch:
        """
        The sketches that the pairs' gradients hold now.

        The probes are copied: the optimizer is about to move them. All processes have to call it.

        Raises:
            `RuntimeError`: If a pair has no gradient.
        """
        grad_A, grad_B = zip(*(probe.gradients() for probe in self.probes), strict=True)
        A, B = ([gathered(getattr(probe, side)) for probe in self.probes] for side in "AB")
        scaling = self.probes[0].layer.scaling[self.probes[0].adapter]
        return LoraSketch.from_lora_gradients(*map(torch.stack, (grad_A, grad_B, A, B)), scaling, held_out)

    @torch.no_grad()
    def draw(self, seed: int, step: int, held_out: int = 0) -> None:
        """
        Overwrite the pairs with the probes of a step: random, or along the subspace where there is one.

        Args:
            seed (`int`):
                Seed of the run.
            step (`int`):
                Optimizer step.
            held_out (`int`, *optional*, defaults to `0`):
                Last rows of `A` that are random in any case.
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
        # What takes the place of directions that are only rounding need not differ from module to module.
        A, B = draw_probes(seed, step, "x".join(map(str, self.shape)), *self.shape, rank, device)
        count, (_, columns) = len(self.probes), self.shape
        A, B = self.subspace.probes(A.expand(count, -1, -1), B.expand(count, -1, -1), random_rows)
        # Named after the first of them: another group of this shape has other numbers.
        generator = named_generator(seed, step, self.probes[0].name, "random rows", device)
        A[:, rank - random_rows :] = (
            torch.randn(count, random_rows, columns, generator=generator, device=device) * columns**-0.5
        )
        return A, B

    def even_out(self, gradient: LowRankGradient) -> LowRankGradient:
        """Move the moments on by a step's gradients, and scale these by them."""
        self.moments = SecondMoments.after(gradient, self.moments)
        return self.moments.scale(gradient)

    def spare(self, gradient: LowRankGradient) -> LowRankGradient:
        """The gradients without what the retain set would notice."""
        return spare(gradient, self.retained)

    def write(self, gradient: LowRankGradient, alphas: Sequence[float], seed: int, step: int) -> list[Tensor]:
        """
        Add the gradients, each times its `alpha`, to the modules' own weights, or to what stands in for them.

        Args:
            gradient ([`LowRankGradient`]):
                Of all modules of the group.
            alphas (`Sequence[float]`):
                Signed steps; 0 for modules that are to be left alone.
            seed (`int`):
                Seed of the run.
            step (`int`):
                Optimizer step.

        Returns:
            `list[torch.Tensor]`: Where adapters take the updates, what each of them discarded.
        """
        if self.probes[0].delta is not None:
            apart = zip(self.probes, gradient.unbind(), alphas, strict=True)
            return [probe.write_to_adapter(each, alpha) for probe, each, alpha in apart if alpha]
        weights = [probe.weight for probe in self.probes]
        seeds = [named_seed(seed, step, probe.name, "rounding") for probe in self.probes]
        add_low_rank_all_(weights, gradient, alphas, seeds, transposed=self.probes[0].layer.fan_in_fan_out)
        return []


def follow_all(groups: Sequence[ProbeGroup], sketches: Sequence[LoraSketch]) -> None:
    """Move the groups' subspaces on by a step's sketches."""
    found = GradientSubspace.after_all(sketches, [group.subspace for group in groups])
    for group, subspace in zip(groups, found, strict=True):
        # They say where to look at the next gradient, for which some thousandths do not matter.
        group.subspace = GradientSubspace(subspace.left.half(), subspace.right.half())


def group_probes(probes: Sequence[LoraProbe]) -> list[ProbeGroup]:
    """
    Probes by shape, and by how their weights are stored.

    Args:
        probes (`Sequence[LoraProbe]`):
            Any probes.

    Returns:
        `list[ProbeGroup]`: In the order of their first probes.
    """
    groups: dict[Any, list[LoraProbe]] = {}
    for probe in probes:
        layer = probe.layer
        key = (layer.out_features, layer.in_features, probe.rank, layer.scaling[probe.adapter], probe.A.device)
        if probe.delta is None:
            key += probe.weight.dtype, layer.fan_in_fan_out
        groups.setdefault(key, []).append(probe)
    return [ProbeGroup(group) for group in groups.values()]
