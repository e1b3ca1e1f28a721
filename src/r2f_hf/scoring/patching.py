"""Activation patching: how much a model's answers depend on what each layer knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..data.collator import ForgetRetainCollator
from ..data.formatting import IGNORE_INDEX
from .completions import check_examples, over_processes
from .log_probs import completion_logits, forward_parameters, label_log_probs


# What a layer returns: hidden states, and in some architectures more.
Output = Tensor | tuple[Tensor, ...]


def key_words(
    tokenizer: PreTrainedTokenizerBase, example: dict[str, Any], words: str, name: str = "a row"
) -> dict[str, Any]:
    """
    Leave the labels of an example only where the answer says what has to be known.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.
        example (`dict`):
            An encoded example with `input_ids` and `labels`.
        words (`str`):
            The words, such as a name, as they stand in the answer.
        name (`str`, *optional*):
            What an error calls the example.

    Returns:
        `dict[str, list[int]]`: `input_ids` and `labels`.

    Raises:
        `ValueError`: If the answer does not contain the words.
    """
    labels = example["labels"]
    positions = [index for index, label in enumerate(labels) if label != IGNORE_INDEX]
    ids = [labels[index] for index in positions]
    ends = [len(tokenizer.decode(ids[: count + 1], clean_up_tokenization_spaces=False)) for count in range(len(ids))]
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    start = text.find(words) if words else -1
    if start < 0:
        raise ValueError(f"{name} has key words that its answer does not contain. Write them as they stand there.")
    kept = list(example["labels"])
    for position, begin, end in zip(positions, [0, *ends[:-1]], ends, strict=True):
        if end <= start or begin >= start + len(words):
            kept[position] = IGNORE_INDEX
    return {"input_ids": example["input_ids"], "labels": kept}


@torch.no_grad()
def patching_falls(
    model: nn.Module,
    source: nn.Module,
    examples: Sequence[dict[str, Any]],
    padding: int,
    batch_size: int = 16,
    final_norm: bool = False,
    desc: str | None = None,
    names: Sequence[str] | None = None,
    disable: bool = False,
) -> list[list[float]]:
    """
    Put another model's hidden states into a model, layer by layer, and see how much less likely its answers become.

    At the positions that predict labelled tokens, a layer's output is replaced by that of the same layer of the other
    model. The unlearning depth is computed from the falls (arXiv 2605.24614).

    Args:
        model (`nn.Module`):
            The model that knows the answers. It is used on its own device and in its own mode.
        source (`nn.Module`):
            The model whose hidden states are put into it: an unlearned one, or one that never saw the answers.
        examples (`Sequence[dict]`):
            Encoded examples with `input_ids` and `labels`. Labels are -100 everywhere but at the words that have to be
            known; see [`key_words`].
        padding (`int`):
            Id to pad with.
        batch_size (`int`, *optional*, defaults to `16`):
            Rows per forward pass. Rows of similar length share a pass.
        final_norm (`bool`, *optional*, defaults to `False`):
            Whether to put the last layer's states through the final norm of `source` before they replace those of
            `model`, which puts them through its own once more. The authors' code does so.
        desc (`str`, *optional*):
            Title of the progress bar.
        names (`Sequence[str]`, *optional*):
            Names of the rows for error messages. Defaults to their numbers.
        disable (`bool`, *optional*, defaults to `False`):
            Whether to show no progress bar.

    Returns:
        `list[list[float]]`: For each row, and each layer, by how much the mean log-probability of the labelled tokens
        falls. All processes get all rows.

    Raises:
        `ValueError`: If the models have other shapes, or if a row is too long or has nothing to score.
    """
    check_examples(model, examples, names)
    layers, own = decoder_layers(model), decoder_layers(source)
    sizes = [each.config.get_text_config().hidden_size for each in (model, source)]
    if len(layers) != len(own) or sizes[0] != sizes[1]:
        raise ValueError(
            f"The hidden states of a model with {len(own)} layers of {sizes[1]} do not fit into one with "
            f"{len(layers)} layers of {sizes[0]}. Compare models of one shape."
        )
    collator = ForgetRetainCollator(padding)
    # Layers below the patched one need not run, unless more of them is used than the hidden states: keys and values
    # that later layers share, or what routers say.
    settings = model.config.get_text_config()
    all_layers = any(getattr(settings, name, None) for name in ("num_kv_shared_layers", "output_router_logits"))

    def falls(batch: list[int]) -> list[list[float]]:
        inputs = collator([examples[index] for index in batch])
        replaced = inputs["labels"].roll(-1, dims=1) != IGNORE_INDEX
        # The first label predicts nothing, and the roll has put it last.
        replaced[:, -1] = False
        states = _layer_outputs(source, own, inputs, final_norm)
        with _recorded(layers) as outputs:
            whole = _mean_log_probs(model, inputs)
        columns = []
        for last, (output, state) in enumerate(zip(outputs, states, strict=True)):
            patched = _with_hidden(output, state, replaced)
            with _replaced(layers[last], patched) if all_layers else _left_out(layers[: last + 1], patched):
                columns.append(whole - _mean_log_probs(model, inputs))
        return torch.stack(columns, dim=1).tolist()

    order = sorted(range(len(examples)), key=lambda index: -len(examples[index]["input_ids"]))
    return over_processes(falls, order, batch_size, desc, disable)


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """
    Find a model's layers.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model.

    Returns:
        `nn.ModuleList`

    Raises:
        `ValueError`: If the model has no list of as many modules as its configuration has layers.
    """
    count = model.config.get_text_config().num_hidden_layers
    # The list of layers comes before any list inside a layer.
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ValueError(f"{type(model).__name__} has no list of {count} layers, so no hidden states can be replaced.")


def _mean_log_probs(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    device = next(model.parameters()).device
    sums, tokens = label_log_probs(
        *completion_logits(model, {name: values.to(device) for name, values in inputs.items()})
    )
    return (sums / tokens).cpu()


def _layer_outputs(
    model: nn.Module, layers: nn.ModuleList, inputs: dict[str, Tensor], final_norm: bool
) -> list[Tensor]:
    """What each layer puts out, the last one before the final norm or after it."""
    device = next(model.parameters()).device
    given: dict[str, Any] = {name: inputs[name].to(device) for name in ("input_ids", "attention_mask")}
    # Nothing needs the logits.
    given |= {"logits_to_keep": 1} if "logits_to_keep" in forward_parameters(model) else {}
    given |= {"output_hidden_states": True} if final_norm else {}
    with _recorded(layers) as outputs:
        result = model(**given)
    hidden = [_hidden(output) for output in outputs]
    return [*hidden[:-1], result.hidden_states[-1]] if final_norm else hidden


@contextmanager
def _recorded(layers: nn.ModuleList) -> Iterator[list[Output]]:
    """Collects what each layer puts out."""
    outputs: list[Output] = []
    hooks = [layer.register_forward_hook(lambda _, __, output: outputs.append(output)) for layer in layers]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _hidden(output: Output) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _with_hidden(output: Output, state: Tensor, where: Tensor) -> Output:
    """A layer's output, with another state at some positions."""
    hidden = _hidden(output)
    hidden = torch.where(where.to(hidden.device)[..., None], state.to(hidden), hidden)
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


@contextmanager
def _replaced(layer: nn.Module, output: Output) -> Iterator[None]:
    """Let a layer run, and put out something else."""
    hook = layer.register_forward_hook(lambda *_: output)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _left_out(layers: Sequence[nn.Module], output: Output) -> Iterator[None]:
    """Let each of these layers put out the same, without computing anything."""
    # accelerate's hooks replace the forward method of a module too.
    replaced = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = lambda *_, **__: output
    try:
        yield
    finally:
        for layer, forward in zip(layers, replaced, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward
