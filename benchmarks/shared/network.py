"""What the processes of a run send: counted while it happens, and computed from a model's shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
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
    Everything about a model, or about a part of it, that the network notices.

    Args:
        linear (`Sequence[tuple[int, int]]`):
            `(out_features, in_features)` of each module that R2F writes.
        resharded (`int`):
            Numbers in the weights that FSDP2 gathers twice per step: the transformer layers and the embeddings.
        kept (`int`):
            Numbers in those that it gathers once: the last norm, and a head that is not tied to the embeddings.
        width (`int`):
            Bytes per number.
        front (`int`, *optional*, defaults to `0`):
            Numbers in the weights before which no gradient is needed if only pairs are trained: the embeddings, and
            what the first layer does to its input. ZeRO-3 does not gather them for the backward pass.
        tied (`int`, *optional*, defaults to `0`):
            Numbers in embeddings that are the head, too. ZeRO-3 gathers them for both.
    """

    linear: Sequence[tuple[int, int]]
    resharded: int
    kept: int
    width: int
    front: int = 0
    tied: int = 0

    @classmethod
    def of(cls, model: PreTrainedModel) -> Shapes:
        """The shapes of a model, which may be on meta. To be called before it is wrapped."""
        every, layers = count(model), model.get_decoder().layers
        embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
        attention = layers[0].self_attn
        first = (layers[0].input_layernorm, attention.q_proj, attention.k_proj, attention.v_proj)
        resharded = count(layers) + count(embeddings)
        tied = count(embeddings) if head.weight is embeddings.weight else 0
        front = count(embeddings) + sum(map(count, first))
        return cls(linear_shapes(linear_layers(model)), resharded, every - resharded, width(model), front, tied)

    @classmethod
    def parts(cls, model: PreTrainedModel) -> dict[str, Shapes]:
        """The shapes of an attention and an MLP within a model, and of its embeddings and its head if they differ."""
        layer, embeddings = model.get_decoder().layers[1], count(model.get_input_embeddings())
        parts = {
            name: cls(linear_shapes(module.modules()), count(module), 0, width(model))
            for name, module in (("attention", layer.self_attn), ("MLP", layer.mlp))
        }
        parts["embeddings"] = cls([], embeddings, 0, width(model), front=embeddings)
        return parts | {"head": cls([], 0, count(model.get_output_embeddings()), width(model))}

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

    def gathered_by_zero(self, frozen: bool) -> int:
        """Bytes of weights that ZeRO-3 gathers for a forward and a backward pass, if it keeps none in between."""
        return 2 * self.weights + self.width * (2 * self.tied - (self.front if frozen else 0))


def count(module: nn.Module) -> int:
    """Numbers in the weights of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def linear_shapes(modules: Iterable[nn.Module]) -> list[tuple[int, int]]:
    """`(out_features, in_features)` of those modules that are linear layers."""
    return [(module.out_features, module.in_features) for module in modules if isinstance(module, nn.Linear)]


def width(model: PreTrainedModel) -> int:
    """Bytes per number."""
    return torch.finfo(model.dtype).bits // 8


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


def carried(name: str, shapes: Shapes, rank: int, sharding: str, micro_batches: int = 1) -> Counter[str]:
    """
    Bytes that collectives carry per step, by kind, as [`Carried`] counts them.

    Args:
        name (`str`):
            The contender.
        shapes ([`Shapes`]):
            The model.
        rank (`int`):
            Rank of the pairs.
        sharding (`str`):
            Where the weights are:

            - `"ddp"`: whole on every process. Gradients are added up by all-reduce.
            - `"fsdp2"`: gathered layer by layer for the forward and again for the backward pass. Gradients of weights
              are reduce-scattered, those of pairs added up by all-reduce.
            - `"zero2"`: whole on every process. DeepSpeed adds up gradients by all-reduce, each process keeps its
              piece of them, and all gather what it has changed. R2F reads whole gradients: another all-reduce.
            - `"zero3"`: gathered module by module for each pass, the pairs too. Gradients are reduce-scattered. R2F
              gathers the pairs and their gradients once more to read them.
        micro_batches (`int`, *optional*, defaults to `1`):
            Into how many parts a step is divided. Weights are gathered for each of them, and gradients reduced where
            a process keeps only its piece. Gradients that stay whole are added up once per step.
    """
    summed, trained = gradients(name, shapes, rank), name in ("exact", "full")
    read = summed if name == "r2f" else 0
    if sharding == "ddp":
        return Counter({"all-reduce": summed})
    if sharding == "zero2":
        return Counter({"all-reduce": micro_batches * summed + read, "all-gather": summed})
    if sharding == "zero3":
        passes = shapes.gathered_by_zero(frozen=name != "full") + (0 if trained else 2 * summed)
        return Counter({"all-gather": micro_batches * passes + 2 * read, "reduce-scatter": micro_batches * summed})
    found = Counter({"all-gather": micro_batches * shapes.gathered()})
    found["reduce-scatter" if trained else "all-reduce"] += summed * (micro_batches if trained else 1)
    return found


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
            As in [`carried`].
        micro_batches (`int`, *optional*, defaults to `1`):
            As in [`carried`].
    """
    found = carried(name, shapes, rank, sharding, micro_batches)
    # There and back for an all-reduce.
    return (processes - 1) / processes * (found.total() + found["all-reduce"])
