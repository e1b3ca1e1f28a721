"""What an attack is, and what it is given: a model, the rows, and settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.collator import pad_token_id
from ..data.formatting import Encoded
from ..data.rendering import ChatOptions
from ..distributed import doubled, is_partitioned
from ..scoring import item_probabilities, score_examples


# The value of an attack's first column: what the attacker gets without the attack.
UNATTACKED = "no attack"

# Between the name of a variant and one of its steps.
AT_STEP = " @"

Values = dict[str, list[float]]


@dataclass(frozen=True)
class Target:
    """
    A model that is attacked, and what the attacks may use.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model, on its device, in evaluation mode. An attack may change its weights, and restores them.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        forget (`Sequence[dict]`):
            The forget rows, encoded. A long text is several examples, its windows, with the same `item`.
        retain (`Sequence[dict]`):
            Rows that every model may know, encoded.
        rows (`Mapping[str, Sequence[Mapping]]`):
            The rows themselves as questions and answers (`forget`, `retain`); empty if they are no questions. A
            question is a text, or the token ids of a prompt that stands as it is.
        original ([`~transformers.PreTrainedModel`], *optional*):
            The model from before unlearning.
        options ([`ChatOptions`]):
            Arguments of the chat template, and a system prompt.
        batch_size (`int`, *optional*, defaults to `16`):
            Rows per forward pass.
        max_new_tokens (`int`, *optional*, defaults to `64`):
            Longest generated answer, in tokens.
        seed (`int`, *optional*, defaults to `0`):
            Seed of all that is drawn.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    forget: Sequence[Encoded]
    retain: Sequence[Encoded] = ()
    rows: Mapping[str, Sequence[Mapping[str, Any]]] | None = None
    original: PreTrainedModel | None = None
    options: ChatOptions = field(default_factory=ChatOptions)
    batch_size: int = 16
    max_new_tokens: int = 64
    seed: int = 0

    @property
    def padding(self) -> int:
        """Id to pad with."""
        return pad_token_id(self.tokenizer, self.model)

    def probabilities(self, examples: Sequence[Encoded] | None = None, model: nn.Module | None = None) -> list[float]:
        """
        Length-normalised probability of each row's answer.

        Args:
            examples (`Sequence[dict]`, *optional*):
                Encoded rows. Defaults to the forget rows.
            model (`nn.Module`, *optional*):
                Another model than the target's.

        Returns:
            `list[float]`: From 0 to 1, in the order of the rows.

        Raises:
            `ValueError`: If the model gives NaN for a row.
        """
        examples = self.forget if examples is None else examples
        model = self.model if model is None else model
        log_probs, tokens = score_examples(model, examples, self.padding, self.batch_size, disable=True)
        return row_probabilities(log_probs, tokens, examples)


@dataclass(frozen=True)
class Attack:
    """
    A way to bring back what was forgotten. One file in `attacks/` each.

    Args:
        meaning (`str`):
            What the attack shows, in one sentence for people who read a report.
        quantity (`str`):
            What its values are, per forget row. The higher, the more has come back.
        run (`Callable[[Target], dict[str, list[float]]]`):
            The attack: from a target to the values of each row, by variant. The first variant is
            [`UNATTACKED`]: the same quantity without the attack. A variant whose rows are others names them behind a
            colon: its own `"no attack: ..."` is the one that it is compared with. An attack that takes steps may add
            its values at some of them, by the names that [`at_step`] gives: they become the variant's curve.
        does_not_fit (`Callable[[Target], str | None]`):
            Why the attack cannot be made on a target, or `None`.
        has_comeback (`bool`, *optional*, defaults to `True`):
            Whether the attacker has only the model itself, so that a comeback between gold and the original means
            something.
    """

    meaning: str
    quantity: str
    run: Callable[[Target], Values]
    does_not_fit: Callable[[Target], str | None] = lambda target: None
    has_comeback: bool = True


def at_step(variant: str, step: int) -> str:
    """The name of a variant's values at one of its steps."""
    return f"{variant}{AT_STEP}{step}"


def items_of(examples: Sequence[Encoded]) -> list[int] | None:
    """Which row each example is of, if the examples say so."""
    return [example["item"] for example in examples] if examples and "item" in examples[0] else None


def row_probabilities(log_probs: np.ndarray, tokens: np.ndarray, examples: Sequence[Encoded]) -> list[float]:
    """
    Length-normalised probabilities of rows.

    Raises:
        `ValueError`: For the first row for which the model gives NaN.
    """
    items = items_of(examples)
    if np.isnan(log_probs).any():
        first = int(np.isnan(log_probs).argmax())
        raise ValueError(
            f"forget[{first if items is None else items[first]}] has tokens to which the model gives NaN: its weights "
            "or its precision fail, or the attack ruins it."
        )
    return item_probabilities(log_probs, tokens, items).tolist()


def needs_changeable_weights(target: Target) -> str | None:
    """Why an attack that changes weights cannot be made on a target, or `None`."""
    if getattr(target.model, "is_quantized", False) or getattr(target.model, "quantization_method", None):
        return "the model is quantised, and this attack changes weights: give the model in full precision"
    if any(map(is_partitioned, target.model.parameters())):
        return "ZeRO-3 holds the weights in pieces and trains them only through its engine: use FSDP2"
    return None


def needs_all_weights(target: Target) -> str | None:
    """Why an attack that changes tied weights too cannot be made on a target, or `None`."""
    if reason := needs_changeable_weights(target):
        return reason
    if names := doubled(target.model.state_dict(keep_vars=True)):
        return (
            f"{' and '.join(names)} are one weight, whose rows cannot be shared out evenly. FSDP2 then keeps two "
            "copies, and would change one: launch another number of processes, or without FSDP"
        )
    return None


def needs_questions(target: Target) -> str | None:
    """Why an attack that asks questions cannot be made on a target, or `None`."""
    if not target.rows or not target.rows.get("forget"):
        return "the forget rows are no questions with answers"
    return None


def needs_original(target: Target) -> str | None:
    """Why an attack that uses the model from before unlearning cannot be made, or `None`."""
    if target.original is None:
        return "it needs the model from before unlearning: name it as `original_model`"
    return None


def linear_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of the linear layers by name, without the head, whose rows are the vocabulary's."""
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and module.weight.is_floating_point()
    }


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """
    Give a model its weights, its mode and its parameters' `requires_grad` back, bit for bit.

    Each process keeps and restores its own part of sharded weights. FSDP2 has none of them gathered when this begins.
    """
    kept = {name: tensor.detach().clone() for name, tensor in model.state_dict(keep_vars=True).items()}
    modes = {module: module.training for module in model.modules()}
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, tensor in model.state_dict(keep_vars=True).items():
                tensor.copy_(kept[name])
        for module, training in modes.items():
            module.training = training
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
            parameter.grad = None


def mean(values: Sequence[float]) -> float:
    """Mean of the rows' values."""
    return float(np.mean(values))
