"""From a plain model to one that carries the probes, or a reason why that cannot be."""

from __future__ import annotations

import re

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .callback import check_ranks
from .config import R2FConfig
from .gradients import find_probes


# So small that the probes leave the forward pass as it is, yet a power of two, so that dividing by it is exact. In
# fp16, whose gradients would underflow, ten bits are invisible beside the format's own rounding.
PROBE_SCALING = 2.0**-20
PROBE_SCALING_FP16 = 2.0**-10


def check_model(model: nn.Module) -> None:
    """
    Refuse a model whose weights R2F cannot or must not write.

    Raises:
        `ValueError`: With what to do instead.
    """
    if isinstance(model, PeftModel) or getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            "The model already carries an adapter. Merge it first (`model = model.merge_and_unload()`), or add "
            "R2FCallback to a Trainer over it to use that adapter as the probe."
        )
    if getattr(model, "is_quantized", False):
        raise ValueError(
            "The model is quantised: a step is far smaller than the distance between two quantised values, so the "
            "update would be lost. Load it without `quantization_config`, for example with `dtype=torch.bfloat16`."
        )


def add_probes(model: PreTrainedModel, args: R2FConfig) -> PeftModel:
    """
    Wrap a model in the LoRA adapter that serves as the probe.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model; its modules are wrapped in place, its weights are untouched.
        args ([`R2FConfig`]):
            Rank and modules.

    Returns:
        [`~peft.PeftModel`]

    Raises:
        `ValueError`: If no module matches, the rank exceeds a dimension of one, or experts' weights would be passed
            over in silence.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    embeddings = model.get_input_embeddings().weight
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    targets = args.target_modules
    if has_experts(model, args) and targets == "all-linear":
        # PEFT's shorthand takes in the experts, excluded or not.
        targets = [name for name, module in linear.items() if module is not model.get_output_embeddings()]
    excluded = args.exclude_modules or []
    if isinstance(excluded, str):
        excluded = [name for name in linear if re.fullmatch(excluded, name)]
    fixed = [name for name, module in linear.items() if not module.weight.requires_grad or module.weight is embeddings]
    half = args.fp16 or model.dtype == torch.float16
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=args.rank,
        lora_alpha=args.rank * (PROBE_SCALING_FP16 if half else PROBE_SCALING),
        target_modules=targets,
        exclude_modules=[*excluded, *fixed] or None,
    )
    try:
        model = get_peft_model(model, config, adapter_name="r2f_probe")
    except ValueError as error:
        kinds = sorted({name.rsplit(".", 1)[-1] for name in linear.keys() - set(fixed)})
        raise ValueError(
            f"No module to change: `target_modules={args.target_modules!r}` and "
            f"`exclude_modules={args.exclude_modules!r}` leave none of this model's. Linear modules that are neither "
            f"frozen nor tied: {', '.join(kinds) or 'none'}."
        ) from error
    try:
        check_ranks(find_probes(model), args.held_out)
    except ValueError:
        model.unload()
        for parameter in trainable:
            parameter.requires_grad_(True)
        raise
    return model


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

    experts = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 3 and not isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Conv1d)
    }
    for name, parameter in experts.items():
        module, _, attribute = name.rpartition(".")
        targeted = args.target_modules == "all-linear" or matches(module, args.target_modules)
        if targeted and not matches(module, args.exclude_modules):
            raise ValueError(
                f"{module} holds the weights of all experts in one parameter ({attribute}, {tuple(parameter.shape)}), "
                "which R2F cannot write. To change the rest of the model alone, leave the experts out: "
                f'`exclude_modules=["{module.rpartition(".")[2]}"]`.'
            )
    return bool(experts)
