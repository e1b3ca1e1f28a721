"""LoRA gradients as a two-sided random sketch of the full gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .linalg import double_gram


@dataclass
class LoraSketch:
    """
    A two-sided sketch of one module's gradient, read from the gradients of a LoRA pair.

    A LoRA pair adds `s * B @ A` to a weight with gradient `G`. By the chain rule, `dL/dB = s G Aᵀ` and
    `dL/dA = s Bᵀ G`. Divided by the scaling `s`, these are a right and a left sketch of `G`: the measurements of a
    generalized Nyström approximation (Tropp et al. 2017, Nakatsukasa 2020). Everything is fp32. The tensors may carry
    the same leading dimensions, for modules of one shape that are decoded together.

    Args:
        Y (`torch.Tensor` of shape `(..., out_features, r)`):
            Right sketch, `G @ A.T`.
        Z (`torch.Tensor` of shape `(..., r, in_features)`):
            Left sketch, `B.T @ G`.
        A (`torch.Tensor` of shape `(..., r, in_features)`):
            Right probe, rows of a norm near 1.
        B (`torch.Tensor` of shape `(..., out_features, r)`):
            Left probe, columns of a norm near 1.
        held_out (`int`, *optional*, defaults to `0`):
            Number of the last rows of `A` that no decoder may see. They measure the reconstruction's error. Their
            entries are `N(0, 1/in_features)`.
    """

    Y: Tensor
    Z: Tensor
    A: Tensor
    B: Tensor
    held_out: int = 0

    @classmethod
    def from_lora_gradients(
        cls, grad_A: Tensor, grad_B: Tensor, A: Tensor, B: Tensor, scaling: float, held_out: int = 0
    ) -> LoraSketch:
        """
        Read a sketch from the gradients of a LoRA pair.

        Args:
            grad_A (`torch.Tensor` of shape `(r, in_features)`):
                Gradient of the loss in `A`.
            grad_B (`torch.Tensor` of shape `(out_features, r)`):
                Gradient of the loss in `B`.
            A (`torch.Tensor` of shape `(r, in_features)`):
                The values of `A` that the gradients were taken at.
            B (`torch.Tensor` of shape `(out_features, r)`):
                The values of `B` that the gradients were taken at.
            scaling (`float`):
                LoRA scaling `s` (PEFT's `lora_alpha / r`).
            held_out (`int`, *optional*, defaults to `0`):
                Number of the last rows of `A` that the decoder does not see.
        """
        return cls(
            Y=grad_B.detach().float() / scaling,
            Z=grad_A.detach().float() / scaling,
            A=A.detach().float(),
            B=B.detach().float(),
            held_out=held_out,
        )

    @property
    def decodable(self) -> int:
        """Number of rows of `A` that a decoder may use."""
        return self.A.shape[-2] - self.held_out

    @property
    def right(self) -> Tensor:
        """The columns of `Y` that a decoder may use, of shape `(..., out_features, decodable)`."""
        return self.Y[..., : self.decodable]

    @property
    def right_probe(self) -> Tensor:
        """The rows of `A` that a decoder may use, of shape `(..., decodable, in_features)`."""
        return self.A[..., : self.decodable, :]

    @cached_property
    def grams(self) -> tuple[Tensor, Tensor]:
        """Gram matrices `YᵀY` and `ZZᵀ`, each of shape `(..., r, r)`, fp64, computed once and kept."""
        return double_gram(self.Y), double_gram(self.Z.mT)

    @classmethod
    def stack(cls, sketches: Sequence[LoraSketch]) -> LoraSketch:
        """Stack sketches of modules of one shape into one, with a leading dimension."""
        tensors = (torch.stack([getattr(sketch, name) for sketch in sketches]) for name in ("Y", "Z", "A", "B"))
        return cls(*tensors, held_out=sketches[0].held_out)

    @classmethod
    def by_shape(cls, sketches: Sequence[LoraSketch]) -> list[tuple[list[int], LoraSketch]]:
        """Stack the sketches per shape and device. With each stack comes where its sketches were in the sequence."""
        groups: dict[Any, list[int]] = {}
        for index, sketch in enumerate(sketches):
            key = (sketch.Y.shape, sketch.Z.shape, sketch.held_out, sketch.Y.device)
            groups.setdefault(key, []).append(index)
        return [(indices, cls.stack([sketches[index] for index in indices])) for indices in groups.values()]

    def isfinite(self) -> Tensor:
        """Whether both sketches are finite: booleans of shape `(...)`."""
        # On a CPU, `vector_norm(ord=inf)` would take twenty times as long.
        largest = (side.abs().amax((-2, -1)) for side in (self.Y, self.Z))
        return torch.isfinite(sum(largest))
