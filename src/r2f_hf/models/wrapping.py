"""From a plain model to one that carries the probes."""

from __future__ import annotations

import re

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..config import R2FConfig
from ..distributed import whole_shape
from ..probes import find_probes
from ..probes.lora_probe import DELTA, PROBE, check_ranks


# So small that the probes leave the forward pass as it is where they have one (ZeRO-3), and that clipping never sees
# their gradients; yet a power of two, so that dividing by it is exact. In fp16, whose gradients would underflow, ten
# bits are invisible beside the format's own rounding.
PROBE_SCALING = 2.0**-20
PROBE_SCALING_FP16 = 2.0**-10


def wrap(model: PreTrainedModel | PeftModel, args: R2FConfig) -> PeftModel:
    """
    Wrap a model in the LoRA adapter that serves as the probe and, if asked for, in one that takes the updates.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model; its modules are wrapped in place, its weights are untouched.
        args ([`R2FConfig`]):
            Ranks and modules.

    Returns:
        [`~peft.PeftModel`]

    Raises:
        `ValueError`: If no module matches, the rank exceeds a dimension of one, or experts' weights would be passed
            over in silence.
    """
    trainable = {parameter: parameter.requires_grad for parameter in model.parameters()}
    embeddings = model.get_input_embeddings().weight
    to_adapter = args.update_target == "adapter"
    own = list(model.active_adapters) if isinstance(model, PeftModel) else []
    active = model.active_adapter if own else None
    base = model.get_base_model() if own else model
    linear = {name: module for name, module in base.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    if own:
        inner = (".lora_", ".modules_to_save.", ".original_module")
        outer = [name for name in linear if not any(part in name for part in inner)]
        linear = {name.removesuffix(".base_layer"): linear[name] for name in outer}
    targets = args.target_modules
    reached = set(base.get_decoder().modules())
    text = [name for name, module in linear.items() if module in reached]
    head = [name for name, module in linear.items() if module is base.get_output_embeddings()]
    if (has_experts(base, args) or own or len(text) + len(head) < len(linear)) and targets == "all-linear":
        # PEFT's shorthand takes in the experts, excluded or not, what an adapter has put beside a module, and the
        # parts of a model that text does not reach, such as a vision tower.
        targets = text
    excluded = args.exclude_modules or []
    if isinstance(excluded, str):
        excluded = [name for name in linear if re.fullmatch(excluded, name)]
    # An adapter moves neither a frozen weight nor the embeddings.
    fixed = [
        name
        for name, module in linear.items()
        if not to_adapter and (not module.weight.requires_grad or module.weight is embeddings)
    ]
    half = args.fp16 or base.dtype == torch.float16
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=args.rank,
        lora_alpha=args.rank * (PROBE_SCALING_FP16 if half else PROBE_SCALING),
        target_modules=targets,
        exclude_modules=[*excluded, *fixed] or None,
    )
    try:
        if own:
            model.add_adapter(PROBE, config)
            model.set_adapter(PROBE)
        else:
            model = get_peft_model(model, config, adapter_name=PROBE)
    except ValueError as error:
        kinds = sorted({name.rsplit(".", 1)[-1] for name in linear.keys() - set(fixed)})
        raise ValueError(
            f"No module to change: `target_modules={args.target_modules!r}` and "
            f"`exclude_modules={args.exclude_modules!r}` leave none of this model's. Linear modules that are neither "
            f"frozen nor tied: {', '.join(kinds) or 'none'}."
        ) from error
    try:
        probes = find_probes(model, writable=not to_adapter)
        check_ranks(probes, args.held_out)
    except ValueError:
        if own:
            model.delete_adapter(PROBE)
            model.active_adapter = active
            model.base_model.set_adapter(own)
        else:
            model.unload()
        for parameter, was in trainable.items():
            parameter.requires_grad_(was)
        raise
    if to_adapter:
        add_delta(model, [probe.name for probe in probes], args.adapter_rank, own)
    return model


def add_delta(model: PeftModel, modules: list[str], rank: int, own: list[str]) -> None:
    """
    Add the adapter that takes the updates: empty, active beside the probes and the model's own, and not trained.

    Args:
        model ([`~peft.PeftModel`]):
            The model with its probes.
        modules (`list[str]`):
            What the probes are on.
        rank (`int`):
            Rank of the adapter.
        own (`list[str]`):
            Adapters that were active before.
    """
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=rank,
        target_modules=modules,
        base_model_name_or_path=model.get_base_model().config._name_or_path,
    )
    model.add_adapter(DELTA, config)
    for name, parameter in model.named_parameters():
        if f".{DELTA}." in name:
            parameter.data.zero_()
    # PeftModel itself takes one name alone, which stays that of the probes.
    model.base_model.set_adapter([*own, DELTA, PROBE])
    model.set_requires_grad([*own, DELTA], requires_grad=False)


def has_experts(model: PreTrainedModel, args: R2FConfig) -> bool:
    """
    Whether a model holds the weights of all experts of a mixture in one parameter, without linear layers.

    Raises:
        `ValueError`: Naming the first such module that is targeted and not excluded.
    """

    def matches(name: str, patterns: str | list[str] | None) -> bool:
        # As PEFT does.
        if isinstance(patterns, str):
            return re.fullmatch(patterns, name) is not None
        return any(name == pattern or name.endswith(f".{pattern}") for pattern in patterns or [])

    # Parts that text does not reach may have parameters of any shape.
    reached = set(model.get_decoder().parameters())
    experts = {
        name: parameter
        for name, parameter in model.named_parameters()
        if len(whole_shape(parameter)) == 3
        and parameter in reached
        and not isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Conv1d)
    }
    for name, parameter in experts.items():
        module, _, attribute = name.rpartition(".")
        shape = tuple(whole_shape(parameter))
        targeted = args.target_modules == "all-linear" or matches(module, args.target_modules)
        if targeted and not matches(module, args.exclude_modules):
            raise ValueError(
                f"{module} holds the weights of all experts in one parameter ({attribute}, {shape}), "
                "which R2F cannot write. To change the rest of the model alone, leave the experts out: "
                f'`exclude_modules=["{module.rpartition(".")[2]}"]`.'
            )
    return bool(experts)
