"""From a plain model to one that carries the probes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel

from ..config import R2FConfig
from ..probes import find_probes
from ..probes.lora_probe import DELTA, PROBE, check_ranks
from ..runs.weights import adapter_layers, plain_name
from .modules import Targets, check_stacking, find_targets, taken_for_experts
from .plain import give_back_methods, prepare_way_back, unwrap


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
            The model; its modules are wrapped in place, its weights are untouched. What it saves afterwards is the
            plain model, see [`~r2f_hf.models.plain.PlainNames`].
        args ([`R2FConfig`]):
            Ranks and modules.

    Returns:
        [`~peft.PeftModel`]

    Raises:
        `ValueError`: If no module matches, the rank exceeds a dimension of one, or experts' weights would be passed
            over in silence.
    """
    to_adapter = args.update_target == "adapter"
    stacked = isinstance(model, PeftModel)
    base = model.get_base_model() if stacked else model
    if not stacked:
        # The probes of an earlier trainer over the same model.
        unwrap(base)
    own = list(model.active_adapters) if stacked else []
    layers = adapter_layers(base)
    trainable = {
        plain_name(name, layers) or name: parameter.requires_grad for name, parameter in base.named_parameters()
    }
    restore = as_it_was(model)
    # `restore` reads it, should something go wrong from here on.
    base.r2f_trainable = trainable
    try:
        targets = find_targets(base, args)
        if stacked:
            check_stacking(model, args, targets.names)
        half = args.fp16 or base.dtype == torch.float16
        config = targets.config(args.rank, args.rank * (PROBE_SCALING_FP16 if half else PROBE_SCALING))
        try:
            if stacked:
                model.add_adapter(PROBE, config)
                model.set_adapter(PROBE)
            else:
                model = get_peft_model(model, config, adapter_name=PROBE)
        except ValueError as error:
            raise ValueError(
                f"PEFT cannot put a LoRA pair on what `target_modules={args.target_modules!r}` names: {error}"
            ) from error
        probes = find_probes(model, writable=not to_adapter)
        check_ranks(probes, args.held_out)
        if to_adapter:
            add_delta(model, targets, args.adapter_rank, own)
        # DeepSpeed saves and loads the state dict of the model that it is given, and wants the names as they are.
        prepare_way_back(model, trainable, names=args.deepspeed_plugin is None)
    except Exception:
        restore()
        raise
    return model


def as_it_was(model: PreTrainedModel | PeftModel) -> Callable[[], None]:
    """
    Remember what wrapping changes of a model.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model, before it is wrapped.

    Returns:
        `Callable`: Takes the probes, and the adapter for the updates, off the model again.
    """
    if not isinstance(model, PeftModel):
        return lambda: unwrap(model)
    own, active = list(model.active_adapters), model.active_adapter
    trainable = {parameter: parameter.requires_grad for parameter in model.parameters()}

    def restore() -> None:
        for name in {PROBE, DELTA} & model.peft_config.keys():
            model.delete_adapter(name)
        model.active_adapter = active
        model.base_model.set_adapter(own)
        give_back_methods(model)
        for parameter, was in trainable.items():
            parameter.requires_grad_(was)

    return restore


def add_delta(model: PeftModel, targets: Targets, rank: int, own: list[str]) -> None:
    """
    Add the adapter that takes the updates: empty, active beside the probes and the model's own, and not trained.

    Args:
        model ([`~peft.PeftModel`]):
            The model with its probes.
        targets ([`Targets`]):
            What the probes are on.
        rank (`int`):
            Rank of the adapter.
        own (`list[str]`):
            Adapters that were active before.
    """
    base = model.get_base_model()
    config = targets.config(rank, rank, base_model_name_or_path=base.config._name_or_path)
    model.add_adapter(DELTA, config)
    # What PEFT would take for experts, when it loads the adapter, is named by the parameter.
    taken = taken_for_experts(base, targets.names)
    if taken:
        config.target_modules = set(targets.names) - set(taken)
        config.target_parameters = [f"{name}.weight" for name in taken]
    for name, parameter in model.named_parameters():
        if f".{DELTA}." in name:
            parameter.data.zero_()
    # PeftModel itself takes one name alone, which stays that of the probes.
    model.base_model.set_adapter([*own, DELTA, PROBE])
    model.set_requires_grad([*own, DELTA], requires_grad=False)
