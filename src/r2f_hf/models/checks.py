"""Models that R2F refuses, with what to do instead."""

from __future__ import annotations

import logging
from importlib.metadata import version

import torch
from packaging.version import Version
from peft import PeftModel
from torch import nn

from ..config import R2FConfig
from ..distributed import whole_shape
from ..probes.lora_probe import DELTA, PROBE


logger = logging.getLogger(__name__)

# Trainer leaves replicated adapters beside sharded weights alone from here on, and PEFT runs FSDP2's hooks.
SHARDING_VERSIONS = {"torch": "2.8", "transformers": "5.20.2", "peft": "0.21"}


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


def check_arguments(args: R2FConfig) -> None:
    """
    Refuse settings of Trainer that would act on the probes, or not at all.

    Raises:
        `ValueError`: Naming the setting.
    """
    if args.weight_decay:
        raise ValueError(
            "`weight_decay` would act on the probes, which are drawn anew after each step, and not on the model's "
            "weights. Leave it at 0."
        )
    if args.label_smoothing_factor:
        raise ValueError("`label_smoothing_factor` is no part of the forget and retain losses. Leave it at 0.")
    known = torch.backends.mkldnn.is_available()
    if args.bf16 and args.device.type == "cpu" and known and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        logger.warning(
            "This CPU has no arithmetic for bf16: with `bf16=True` steps take a hundred times as long as without."
        )


def check_fsdp(args: R2FConfig, enabled: bool) -> None:
    """
    Refuse accelerate's own FSDP.

    Raises:
        `ValueError`: With what to do instead.
    """
    if enabled or args.fsdp:
        raise ValueError(
            "accelerate's FSDP would shard the probes too, which every process needs whole. Launch without it, and "
            "shard only the weights: load the model with `distributed_config=DistributedConfig(fsdp_size=...)`, from "
            "`transformers.distributed`. (`r2f unlearn` does so itself where `accelerate launch` asks for FSDP.)"
        )


def weights_size(model: nn.Module) -> int:
    """Bytes of a model's weights, sharded or not."""
    return sum(whole_shape(parameter).numel() * parameter.element_size() for parameter in model.parameters())
