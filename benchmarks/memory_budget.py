"""
What fits on one GPU: how many tokens a micro-batch of an 8B model may have, by calculation.

    python benchmarks/memory_budget.py [--model llama-8b] [--gpus 24 40 80]

The model is fake: it has shapes and no numbers. What autograd keeps for the backward pass is counted on it, tensor by
tensor, in a forward pass of each contender. Everything else is counted from the shapes:

- *weights*, in bf16;
- *state*, which stays: LoRA's pairs and their averages in AdamW; R2F's pairs, subspaces, mean squares, and the
  directions of the retain set in fp16, once for the modules that read the same; AdamW's averages of all weights;
- *gradients*: those of the pairs, of all weights, or, for exact SGD, of the largest weight only (of all weights it
  writes, if there are several micro-batches);
- *update*, which R2F has while it writes: copies of the sketches and probes, and the factors of the gradient three
  times. The activations are gone by then, so that only the larger one of both counts;
- *logits*: the head's output, in fp32 and with its gradient.

Under gradient checkpointing there are the inputs of all layers, and what one layer keeps while it is repeated.
`tests/benchmarks/test_memory_budget.py` compares the counts with those of a real model and a real step. Not counted:
what the allocator rounds up, the CUDA context (about 0.5 GB), and temporary tensors within a layer.

Writes outputs/memory_budget.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from r2f_hf.probes.lora_backward import Sketching
from r2f_hf.report import print_table
from r2f_hf.runs.files import write_json
from r2f_hf.updates.retained_inputs import DIRECTIONS
from shared.contenders import RANK, SHAPES, linear_layers, load
from shared.network import Shapes


NAMES = ("r2f", "lora", "exact", "full")
GB = 1e9
# Left for the CUDA context and fragments.
SPARE = 1.5


def prepare(name: str, model: PreTrainedModel) -> nn.Module:
    """The model as the contender trains it. It may be a fake one, which [`R2FStep`] would draw probes for."""
    if name == "full":
        return model.requires_grad_(True)
    if name == "exact":
        model.requires_grad_(False)
        for layer in linear_layers(model):
            layer.weight.requires_grad_(True)
        return model
    wrapped = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=RANK * 1e-6, target_modules="all-linear"))
    for layer in wrapped.modules():
        if name == "r2f" and isinstance(layer, LoraLayer):
            layer.lora_variant["default"] = Sketching()
            layer.cast_input_dtype_enabled = False
    return wrapped


def kept_for_backward(model: nn.Module, rows: int, length: int) -> int:
    """Bytes that a forward pass of the model keeps for the backward pass, apart from parameters and logits."""
    every = [*model.named_parameters(), *model.named_buffers()]
    # A model on meta computes on a CPU, where attention keeps what a GPU's fused kernels keep. On meta it would keep
    # whole matrices of weights.
    tensors = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype).requires_grad_(tensor.requires_grad)
        if tensor.is_meta
        else tensor
        for name, tensor in every
    }
    own = {tensor.untyped_storage()._cdata for tensor in tensors.values()}
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            # The storage itself is kept here, so that no other one gets its address.
            kept[storage._cdata] = storage
        return tensor

    # With a mask, as rows of different lengths need one.
    mask = torch.zeros(rows, 1, length, length, dtype=model.dtype)
    inputs = {"input_ids": torch.zeros(rows, length, dtype=torch.long), "attention_mask": mask}
    inputs |= {"logits_to_keep": 1, "use_cache": False}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        torch.func.functional_call(model, tensors, kwargs=inputs)
    return sum(storage.nbytes() for storage in kept.values())


def per_token(model: nn.Module, rows: int = 2, length: int = 512) -> float:
    """Bytes per token that stay for the backward pass, from two lengths, so that what does not grow drops out."""
    few, many = (kept_for_backward(model, rows, size) for size in (length, 2 * length))
    return (many - few) / (rows * length)


def parts(name: str, model: PreTrainedModel, micro_batches: bool = False) -> dict[str, float]:
    """
    Bytes of a contender that do not depend on the number of tokens.

    Args:
        name (`str`):
            The contender.
        model ([`~transformers.PreTrainedModel`]):
            The model, before it is wrapped.
        micro_batches (`bool`, *optional*, defaults to `False`):
            Whether gradients are added up over several micro-batches.

    Returns:
        `dict[str, float]`: `weights`, `state`, `gradients` and `update`.
    """
    shapes = Shapes.of(model)
    pairs = shapes.pairs(RANK)
    largest = max(out * into for out, into in shapes.linear) * shapes.width
    # Queries, keys and values read one tensor, and so do the gate and the up projection.
    config = model.config
    distinct = config.num_hidden_layers * (3 * config.hidden_size + config.intermediate_size)
    sums = 4 * sum(out + into for out, into in shapes.linear)
    states = {"r2f": 2 * pairs + sums + 2 * DIRECTIONS * distinct, "lora": 3 * pairs, "full": 2 * shapes.weights}
    gradients = {
        "r2f": pairs,
        "lora": pairs,
        "exact": shapes.dense() if micro_batches else largest,
        "full": shapes.weights,
    }
    # Sketches and probes, and factors of twice the rank: decoded, rescaled and protected.
    update = (2 + 3 * 2) * pairs if name == "r2f" else 0
    return {
        "weights": shapes.weights,
        "state": states.get(name, 0),
        "gradients": gradients[name],
        "update": update,
    }


def budget(name: str, model: str, gpus: list[int]) -> dict[str, float | str]:
    """What a contender takes, and how many tokens of a micro-batch fit on each GPU."""

    plain = load(model, "bfloat16", "meta")
    fixed = parts(name, plain)
    config = plain.config
    trained = prepare(name, load(model, "bfloat16", "meta"))
    with FakeTensorMode():
        activations = per_token(trained)
    inputs = config.num_hidden_layers * config.hidden_size * 2
    # Recomputed within one layer, next to all layers' inputs.
    recomputed = inputs + activations / config.num_hidden_layers
    # bf16, fp32 and the gradient of the latter.
    logits = config.vocab_size * (2 + 4 + 4)
    row: dict[str, float | str] = {f"{part}, GB": value / GB for part, value in fixed.items()}
    row |= {"activations, MB per token": activations / 1e6, "checkpointed": recomputed / 1e6, "logits": logits / 1e6}
    for gpu in gpus:
        free = gpu * GB - SPARE * GB - fixed["weights"] - fixed["state"] - fixed["gradients"]
        for title, bytes_per_token in (("", activations), (", checkpointed", recomputed)):
            tokens = int(free / (bytes_per_token + logits)) if free > fixed["update"] else 0
            row[f"tokens in {gpu} GB{title}"] = tokens if tokens > 0 else "does not fit"
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-8b", choices=SHAPES)
    parser.add_argument("--gpus", type=int, nargs="+", default=[24, 40, 80], help="GB of each GPU")
    parser.add_argument("--output", type=Path, default=Path("outputs/memory_budget.json"))
    options = parser.parse_args()
    rows = {name: budget(name, options.model, options.gpus) for name in NAMES}
    write_json(options.output, rows)
    print_table(f"{options.model}, bf16, rank {RANK}", rows, list(rows["r2f"]))
    print(f"The report is {options.output}.")


if __name__ == "__main__":
    main()
