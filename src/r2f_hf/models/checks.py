"""Models that R2F refuses, with what to do instead."""

from __future__ import annotations

import logging
from importlib.metadata import version

import torch
from packaging.version import Version
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel, TrainingArguments

from ..config import R2FConfig
from ..distributed import is_sharded, whole_shape
from ..probes.lora_probe import DELTA, ON_META, PROBE


logger = logging.getLogger(__name__)

# Trainer leaves replicated adapters beside sharded weights alone from here on, and PEFT runs FSDP2's hooks.
SHARDING_VERSIONS = {"torch": "2.8", "transformers": "5.20.2", "peft": "0.21"}


# What weights are computed in. Those of quantised models are packed into others.
PRECISIONS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_model(model: nn.Module, args: R2FConfig) -> None:
    """
    Refuse a model whose weights R2F cannot or must not write.

    Raises:
        `ValueError`: With what to do instead.
    """
    to_adapter = args.update_target == "adapter"
    check_memory(model)
    check_kind(model)
    if not to_adapter and getattr(model, "is_quantized", False):
        raise ValueError(
            "The model is quantised: a step is far smaller than the distance between two quantised values, so the "
            "update would be lost. Load it without `quantization_config`, for example with `dtype=torch.bfloat16`, or "
            'let an adapter take the updates (`update_target="adapter"`).'
        )
    check_adapters(model, to_adapter)
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


def check_memory(model: nn.Module) -> None:
    """
    Refuse weights that are elsewhere, or no numbers. Nothing can be computed with them, or found out about the model.

    Raises:
        `ValueError`: Naming one of them.
    """
    named = list(model.named_parameters()) if isinstance(model, nn.Module) else []
    away = [name for name, parameter in named if parameter.device.type == "meta"]
    if away:
        raise ValueError(f"{away[0]} (of {len(away)} weights) is on the meta device and not in memory: {ON_META}")
    # Not of shards, which the processes would have to look at together.
    whole = [(name, each) for name, each in named if each.dtype in PRECISIONS and not is_sharded(each)]
    spoilt = [name for name, parameter in whole if not parameter.isfinite().all()]
    if spoilt:
        raise ValueError(
            f"{spoilt[0]} (of {len(spoilt)} weights) holds NaN or infinite numbers, so that the model says nothing. "
            "Load a model that is whole, or in another `dtype` if its weights are too large for this one."
        )


def check_kind(model: nn.Module) -> None:
    """
    Refuse what is no causal language model.

    Raises:
        `ValueError`: Saying what it is.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    why = None
    if not isinstance(base, PreTrainedModel):
        why = "is no model of Transformers"
    elif base.config.is_encoder_decoder:
        why = "has an encoder that reads the question apart from the answer"
    elif not base.can_generate():
        why = "has no head that predicts the next token"
    elif not is_causal(base):
        why = "lets tokens see those that come after them"
    if why is not None:
        raise ValueError(
            f"R2F needs a causal language model, as `AutoModelForCausalLM` loads it: a {type(base).__name__} {why}."
        )


def is_causal(model: PreTrainedModel) -> bool:
    """
    Whether tokens see only those before them. Encoders such as BERT have a class with a head for generation too, in
    which they see all, unless the configuration says that it is a decoder.
    """
    if any(getattr(module, "is_causal", None) is True for module in model.get_decoder().modules()):
        return True
    config = model.config.get_text_config()
    doubtful = (
        config.model_type in ("cpmant", "xlnet")
        or getattr(config, "use_bidirectional_attention", None) in (True, "all")
        # The first is BERT's and its descendants', the second XLM's and Flaubert's.
        or getattr(config, "is_decoder", True) is False
        or getattr(config, "causal", True) is False
    )
    if not doubtful:
        return True
    if any(map(is_sharded, model.parameters())):
        return False
    # GPT-NeoX has `is_decoder` for no reason, and the attention of some models goes both ways only over pictures. So
    # the last token of a text is changed, which may be any without a meaning of its own.
    ids = torch.arange(10, 16, device=model.get_input_embeddings().weight.device).repeat(2, 1)
    ids[1, -1] += 1
    training = {module: module.training for module in model.modules()}
    model.eval()
    with torch.no_grad():
        first, second = (model(input_ids=row[None]).logits[:, :-1] for row in ids)
    for module, was in training.items():
        module.training = was
    return torch.equal(first, second)


def check_adapters(model: nn.Module, to_adapter: bool) -> None:
    """
    Refuse adapters that the model carries, unless the one that takes the updates can be stacked on them.

    Raises:
        `ValueError`: With what to do instead.
    """
    # PEFT freezes the weights behind an adapter, and leaves them so. Next to an adapter they may be.
    thaw = "" if to_adapter else ".requires_grad_(True)"
    stack = "hand it to R2FTrainer" + ("" if to_adapter else ' with `update_target="adapter"`')
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            "The model carries an adapter that Transformers itself has loaded. In Python load it with PEFT, "
            f"`model = PeftModel.from_pretrained(base_model, adapter_folder)`, and {stack}, which stacks another "
            "adapter on it; or merge it, `model.merge_and_unload().save_pretrained(folder)`, and unlearn that folder."
        )
    if isinstance(model, PeftModel):
        carried = {name: config.peft_type for name, config in model.peft_config.items()}
        if to_adapter and (PROBE in carried or DELTA in carried):
            raise ValueError(
                "The model carries the adapters of an R2FTrainer already. Load it anew, and stack the adapter that "
                "was saved if it is to forget more."
            )
        other = [f"{name} ({kind})" for name, kind in carried.items() if kind != "LORA"]
        if to_adapter and other:
            raise ValueError(
                f"The model carries adapters that are not LoRA: {', '.join(other)}. Only LoRA can be stacked on; "
                f"merge them first (`model = model.merge_and_unload(){thaw}`)."
            )
        if not to_adapter:
            raise ValueError(
                f"The model already carries an adapter. Merge it first (`model = model.merge_and_unload(){thaw}`), "
                'let an adapter take the updates (`update_target="adapter"`), or add R2FCallback to a Trainer over it '
                "to use that adapter as the probe."
            )
        return
    # PEFT wraps modules in place: the variable that a PeftModel was made of carries its adapters as well.
    inside = adapters_inside(model)
    if inside - {PROBE, DELTA}:
        raise ValueError(
            f"The model already carries an adapter ({', '.join(sorted(inside - {PROBE, DELTA}))}) in its modules, "
            f"because a PeftModel was made of it. Merge it first (`model = peft_model.merge_and_unload(){thaw}`)"
            + (", or hand the PeftModel itself to R2FTrainer." if to_adapter else ".")
        )
    if DELTA in inside and not is_empty(model, DELTA):
        raise ValueError(
            "The model carries the adapter that took the updates of another R2FTrainer. First merge it "
            "(`model = trainer.model.merge_and_unload()`) or discard it (`model = trainer.model.unload()`)."
        )


def adapters_inside(model: nn.Module) -> set[str]:
    """Names of the adapters in a model's modules."""
    layers = (module for module in model.modules() if isinstance(module, BaseTunerLayer))
    return {
        name for layer in layers for attribute in layer.adapter_layer_names for name in getattr(layer, attribute, ())
    }


def is_empty(model: nn.Module, adapter: str) -> bool:
    """Whether a LoRA adapter adds nothing, as before training."""
    layers = (module for module in model.modules() if isinstance(module, LoraLayer) and adapter in module.lora_B)
    return not any(layer.lora_B[adapter].weight.any() for layer in layers)


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
    check_any_trainer(args)
    if args.push_to_hub and args.hub_strategy in ("checkpoint", "all_checkpoints"):
        raise ValueError(
            f"`hub_strategy={args.hub_strategy.value!r}` uploads checkpoints before they are whole, so that no run "
            'could go on from them. Set "end" or "every_save".'
        )
    if args.label_smoothing_factor:
        raise ValueError("`label_smoothing_factor` is no part of the forget and retain losses. Leave it at 0.")
    known = torch.backends.mkldnn.is_available()
    if args.bf16 and args.device.type == "cpu" and known and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        logger.warning(
            "This CPU has no arithmetic for bf16: with `bf16=True` steps take a hundred times as long as without."
        )


def check_any_trainer(args: TrainingArguments) -> None:
    """
    Refuse settings that would act on the probes, round the model or write to it twice, in any Trainer.

    Raises:
        `ValueError`: Naming the setting.
    """
    check_weight_decay(args)
    check_optimizer(args)
    if args.auto_find_batch_size:
        raise ValueError(
            "`auto_find_batch_size` begins a run anew with smaller batches, on weights that may have changed already. "
            "Lower `per_device_train_batch_size` yourself, and raise `gradient_accumulation_steps`."
        )
    for name in ("bf16_full_eval", "fp16_full_eval"):
        if getattr(args, name):
            raise ValueError(
                f"`{name}` rounds the model itself, before R2F keeps or changes its weights. Use `bf16=True`, which "
                "only computes in half precision, or load the model in it (`dtype`)."
            )


def check_weight_decay(args: TrainingArguments) -> None:
    """
    Refuse weight decay, in any Trainer whose optimizer moves the probes.

    Raises:
        `ValueError`: Naming the setting.
    """
    if args.weight_decay:
        raise ValueError(
            "`weight_decay` would act on the probes, which are drawn anew after each step, and not on the model's "
            "weights. Leave it at 0."
        )


def check_optimizer(args: TrainingArguments) -> None:
    """
    Refuse optimizers that use up the gradients within the backward pass, in any Trainer.

    Raises:
        `ValueError`: Naming the setting.
    """
    name = getattr(args.optim, "value", args.optim)
    if name in ("lomo", "adalomo") or name.endswith("_layerwise"):
        raise ValueError(
            f"`optim={name!r}` uses up each gradient in the backward pass, so that none would be left to decode. The "
            'optimizer only moves the probes, which are drawn anew after each step: take "sgd".'
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
