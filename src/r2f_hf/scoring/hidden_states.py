"""What a model makes of whole statements, for linear probes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..data.collator import ForgetRetainCollator
from ..data.formatting import IGNORE_INDEX
from .completions import check_examples, over_processes
from .log_probs import forward_parameters


@torch.no_grad()
def hidden_states(
    model: nn.Module,
    examples: Sequence[dict[str, Any]],
    padding: int,
    layer: int | None = None,
    batch_size: int = 16,
    desc: str | None = None,
    names: Sequence[str] | None = None,
    disable: bool = False,
) -> np.ndarray:
    """
    Compute a layer's hidden state at the last labelled token of each example, which has read all of it.

    Args:
        model (`nn.Module`):
            The model. It is used on its own device and in its own mode (training or evaluation).
        examples (`Sequence[dict]`):
            Encoded examples with `input_ids` and `labels`.
        padding (`int`):
            Id to pad with.
        layer (`int`, *optional*):
            Number of the layer; 0 is the embeddings, -1 the last one. Defaults to the middle one, where probes find
            truth best.
        batch_size (`int`, *optional*, defaults to `16`):
            Rows per forward pass. Rows of similar length share a pass.
        desc (`str`, *optional*):
            Title of the progress bar.
        names (`Sequence[str]`, *optional*):
            Names of the rows for error messages. Defaults to their numbers.
        disable (`bool`, *optional*, defaults to `False`):
            Whether to show no progress bar.

    Returns:
        `np.ndarray` of shape `(rows, hidden size)`: fp32. All processes get all rows.

    Raises:
        `ValueError`: If a row is longer than the context or has nothing to score, or if the layer does not exist.
    """
    check_examples(model, examples, names)
    count = model.config.get_text_config().num_hidden_layers
    chosen = (count + 1) // 2 if layer is None else layer
    if not -count - 1 <= chosen <= count:
        raise ValueError(f"`layer` is {layer}, and the model has {count} layers. 0 is the embeddings.")
    device = next(model.parameters()).device
    collator = ForgetRetainCollator(padding)

    def states(batch: list[int]) -> list[np.ndarray]:
        inputs = collator([examples[index] for index in batch])
        positions = torch.arange(inputs["labels"].shape[1])
        last = torch.where(inputs["labels"] != IGNORE_INDEX, positions, -1).amax(1)
        given: dict[str, Any] = {name: inputs[name].to(device) for name in ("input_ids", "attention_mask")}
        # Nothing needs the logits.
        given |= {"logits_to_keep": 1} if "logits_to_keep" in forward_parameters(model) else {}
        hidden = model(**given, output_hidden_states=True).hidden_states[chosen]
        return list(hidden[torch.arange(len(batch)), last.to(hidden.device)].float().cpu().numpy())

    order = sorted(range(len(examples)), key=lambda index: -len(examples[index]["input_ids"]))
    return np.stack(over_processes(states, order, batch_size, desc, disable))
