"""From a plain model to one that carries the probes, or a reason why that cannot be."""

from __future__ import annotations

import re
from importlib.metadata import version

import torch
from packaging.version import Version
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .callback import check_ranks
from .config import R2FConfig
from .gradients import find_probes, whole_shape


# So small that the probes leave the forward pass as it is where they have one (ZeRO-3), and that clipping never sees
# their gradients; yet a power of two, so that dividing by it is exact. In fp16, whose gradients would underflow, ten
# bits are invisible beside the format's own rounding.
PROBE_SCALING = 2.0**-20
PROBE_SCALING_FP16 = 2.0**-10

# Trainer leaves replicated adapters beside sharded weights alone from here on, and PEFT runs FSDP2's hooks.
SHARDING_VERSIONS = {"torch": "2.8", "transformers": "5.20.2", "peft": "0.21"}

# Names of the adapters: the pairs that are read, and what takes the updates in place of the weights.
PROBE = "r2f_probe"
DELTA = "r2f"


def check_model(model: nn.Module, args: R2FConfig) -> None:
    """
    Refuse a model whose weights R2F cannot or must not write.

    Raises:
        `ValueError`: With what to do instead.
    """
    adapter = 'let an adapter take the updates (`update_target="adapter"`)'
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            "The model carries an adapter that Transformers itself has loaded. Load it with PEFT's "
            f"`PeftModel.from_pretrained`, and then merge it (`model = model.merge_and_unload()`), or {adapter}."
        )
    if (getattr(model, "tp_size", None) or 1) > 1:
        raise ValueError(
            "The model is loaded with tensor parallelism, under which probes do not see their layers whole. Shard the "
            "weights with `DistributedConfig(fsdp_size=...)` alone."
        )
    sharding = getattr(model.config, "distributed_config", None)
    if sharding is not None:
        check_sharding_versions()
        others = [name for name in ("pp_size", "dp_replicate_size") if getattr(sharding, name) > 1]
        if others or sharding.fsdp_cpu_offload:
            raise ValueError(
                f"The model is distributed by {' and '.join(others) or 'fsdp_cpu_offload'}, under which probes do not "
                "see their layers whole, or weights lie elsewhere than their updates. Load it with "
                "`DistributedConfig(fsdp_size=...)` alone."
            )
    if args.update_target == "adapter":
        own = model.peft_config if isinstance(model, PeftModel) else {}
        if PROBE in own or DELTA in own:
            raise ValueError(
                "The model carries the adapters of an R2FTrainer already. Load it anew, and stack the adapter that "
                "was saved if it is to forget more."
            )
        other = [f"{name} ({config.peft_type})" for name, config in own.items() if config.peft_type != "LORA"]
        if other:
            raise ValueError(
                f"The model carries adapters that are not LoRA: {', '.join(other)}. Only LoRA can be stacked on; "
                "merge them first (`model = model.merge_and_unload()`)."
            )
        return
    if isinstance(model, PeftModel):
        raise ValueError(
            f"The model already carries an adapter. Merge it first (`model = model.merge_and_unload()`), {adapter}, "
            "or add R2FCallback to a Trainer over it to use that adapter as the probe."
        )
    if getattr(model, "is_quantized", False):
        raise ValueError(
            "The model is quantised: a step is far smaller than the distance between two quantised values, so the "
            "update would be lost. Load it without `quantization_config`, for example with `dtype=torch.bfloat16`, or "
            f"{adapter}."
        )


def check_sharding_versions() -> None:
    """
    Refuse libraries that know sharded models, but do not train adapters on them as they should.

    Raises:
        `ValueError`: Naming what to install.
    """
    old = [
        name
        for name, least in SHARDING_VERSIONS.items()
        if Version(Version(version(name)).base_version) < Version(least)
    ]
    if old:
        needed = ", ".join(f"{name}>={least}" for name, least in SHARDING_VERSIONS.items())
        raise ValueError(f"Sharded weights need {needed}; older here: {', '.join(old)}.")


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
        probes = find_probes(model, DELTA if to_adapter else None)
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
