"""What the processes of a run send: counted while it happens, and computed from a model's shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from shared.contenders import linear_layers


# What a collective carries: the bytes of the larger one of its sides, by the name that torch has for it.
COLLECTIVES = {
    "_allgather_base_": "all-gather",
    "allgather_": "all-gather",
    "allgather_into_tensor_coalesced_": "all-gather",
    "all_gather_into_tensor": "all-gather",
    "allgather_coalesced_": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "reduce_scatter_": "reduce-scatter",
    "reduce_scatter_tensor": "reduce-scatter",
    "allreduce_": "all-reduce",
    "all_reduce": "all-reduce",
    "allreduce_coalesced_": "all-reduce",
    "broadcast_": "broadcast",
    "broadcast": "broadcast",
}


class Carried(TorchDispatchMode):
    """
    Counts the bytes that collectives carry within the block, of all calls that this process takes part in.

    An all-gather and a reduce-scatter carry their whole tensor, and an all-reduce the tensor that it adds up. In a
    ring of `n` processes each sends `(n - 1) / n` of this for the former two, and twice as much for an all-reduce.

    Attributes:
        bytes (`Counter`):
            Bytes by kind of collective.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            kind = COLLECTIVES.get(func._schema.name.split("::")[1])
            if kind is not None:
                sides = [sum(leaf.nbytes for leaf in tree_leaves(arg) if isinstance(leaf, Tensor)) for arg in args]
                self.bytes[kind] += max(sides)
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Shapes:
    """
    Everything about a model that the network notices.

    Args:
        linear (`Sequence[tuple[int, int]]`):
            `(out_features, in_features)` of each module that R2F writes.
        resharded (`int`):
            Numbers in the weights that FSDP2 gathers twice per step: the transformer layers and the embeddings.
        kept (`int`):
            Numbers in those that it gathers once: the last norm, and a head that is not tied to the embeddings.
        width (`int`):
            Bytes per number.
    """

    linear: Sequence[tuple[int, int]]
    resharded: int
    kept: int
    width: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> Shapes:
        """The shapes of a model, which may be on meta. To be called before it is wrapped."""
        every = sum(p.numel() for p in model.parameters())
        layers = sum(p.numel() for p in model.get_decoder().layers.parameters())
        resharded = layers + model.get_input_embeddings().weight.numel()
        linear = [(layer.out_features, layer.in_features) for layer in linear_layers(model)]
        return cls(linear, resharded, every - resharded, torch.finfo(model.dtype).bits // 8)

    @property
    def weights(self) -> int:
        """Bytes of all weights."""
        return self.width * (self.resharded + self.kept)

    def pairs(self, rank: int) -> int:
        """Bytes of the LoRA pairs' gradients, which are fp32: `rank * (out + in)` numbers per module."""
        return 4 * rank * sum(out + into for out, into in self.linear)

    def dense(self) -> int:
        """Bytes of the full gradients of the modules that R2F writes."""
        return self.width * sum(out * into for out, into in self.linear)

    def gathered(self) -> int:
        """Bytes that FSDP2 gathers for a forward and a backward pass."""
        return self.width * (2 * self.resharded + self.kept)


def gradients(name: str, shapes: Shapes, rank: int) -> int:
    """
    Bytes of gradients that all processes have to add up, per step.

    Args:
        name (`str`):
            The contender.
        shapes ([`Shapes`]):
            The model.
        rank (`int`):
            Rank of the pairs.
    """
    known = {"floor": 0, "exact": shapes.dense(), "full": shapes.weights}
    return known[name] if name in known else shapes.pairs(rank)


def sent(name: str, shapes: Shapes, rank: int, processes: int, sharding: str, micro_batches: int = 1) -> float:
    """
    Bytes that each process sends per step, in rings.

    Args:
        name (`str`):
            The contender.
        shapes ([`Shapes`]):
            The model.
        rank (`int`):
            Rank of the pairs.
        processes (`int`):
            How many processes there are.
        sharding (`str`):
            `"ddp"`: weights whole on every process, gradients added up by all-reduce. `"fsdp2"` (or ZeRO-3): weights
            gathered layer by layer for the forward and again for the backward pass, gradients of weights
            reduce-scattered, those of pairs added up by all-reduce.
        micro_batches (`int`, *optional*, defaults to `1`):
            Into how many parts a step is divided. Weights are gathered for each of them, and so are gradients of
            sharded weights reduced. Gradients of whole weights are added up once per step.
    """
    once = (processes - 1) / processes
    summed = gradients(name, shapes, rank)
    if sharding == "ddp":
        return 2 * once * summed
    scattered = name in ("exact", "full")
    return once * (micro_batches * shapes.gathered() + summed * (micro_batches if scattered else 2))
