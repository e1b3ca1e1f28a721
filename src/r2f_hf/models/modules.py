"""Which modules of a model carry probes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from peft import LoraConfig, PeftModel
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..config import R2FConfig
from ..distributed import whole_shape
from ..probes.lora_probe import takes_a_pair
from ..runs.weights import adapter_layers, plain_name


# The layers that a parameter of a mixture's experts takes the place of.
HELD = {"gate_up_proj": ("gate_proj", "up_proj")}


class ModuleName(str):
    """
    The full name of a module, for PEFT.

    In a mixture of experts PEFT takes every target that ends in `gate_proj`, `up_proj`, `down_proj` or `gate` for a
    parameter of the experts, including those of layers that are dense and of experts that are shared. It asks the
    target how it ends, and not the model what is there.
    """

    def endswith(self, *args) -> bool:
        return False


class Targets(NamedTuple):
    """
    What is to carry probes.

    Args:
        names (`list[str]`):
            Full names of the modules, in the order of the model.
        clashes (`list[str]`):
            Names of other modules that PEFT would take for one of them: those that end in a target's name.
    """

    names: list[str]
    clashes: list[str]

    def config(self, rank: int, alpha: float, **kwargs) -> LoraConfig:
        """The configuration of a LoRA adapter on just these modules."""
        return LoraConfig(
            task_type="CAUSAL_LM",
            r=rank,
            lora_alpha=alpha,
            target_modules=[ModuleName(name) for name in self.names],
            exclude_modules=self.clashes or None,
            **kwargs,
        )


def find_targets(model: PreTrainedModel, args: R2FConfig) -> Targets:
    """
    The modules that the settings name, without those that cannot change.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model, without adapters or with the user's own.
        args ([`R2FConfig`]):
            `target_modules`, `exclude_modules` and `update_target`.

    Raises:
        `ValueError`: If none is left, or a module is named that cannot carry a probe.
    """
    modules = dict(without_adapters(model))
    check_experts(model, args)
    writable = args.update_target == "weights"
    if args.target_modules == "all-linear":
        # In a multimodal model only the part that text reaches, and of that not the head.
        reached = set(model.get_decoder().modules()) - {model.get_output_embeddings()}
        # A gate with one output has a vector for a weight, of which there is no low rank.
        named = [
            name
            for name, module in modules.items()
            if is_linear(module) and module in reached and getattr(module, "out_features", 0) != 1
        ]
        kinds: dict[type, bool] = {}
        for name in named:
            if type(modules[name]) not in kinds:
                kinds[type(modules[name])] = takes_a_pair(modules[name], writable)
        named = [name for name in named if kinds[type(modules[name])]]
    else:
        named = [name for name in modules if matches(name, args.target_modules)]
    named = [name for name in named if not matches(name, args.exclude_modules)]
    embeddings = model.get_input_embeddings().weight
    # An adapter moves neither a frozen weight nor the embeddings.
    fixed = {
        name
        for name, module in modules.items()
        if is_linear(module) and writable and (not module.weight.requires_grad or module.weight is embeddings)
    }
    names = [name for name in named if name not in fixed]
    if not names:
        left = (name for name, module in modules.items() if is_linear(module) and name not in fixed)
        kinds_left = sorted({name.rpartition(".")[2] for name in left})
        frozen = [name for name in named if not modules[name].weight.requires_grad]
        raise ValueError(
            f"No module to change: `target_modules={args.target_modules!r}` and "
            f"`exclude_modules={args.exclude_modules!r}` leave none of this model's. Linear modules that are neither "
            f"frozen nor tied: {', '.join(kinds_left) or 'none'}."
            + (f" {len(frozen)} are frozen: `model.requires_grad_(True)` makes them trainable." if frozen else "")
        )
    chosen = set(names)
    clashes = [name for name in modules if name not in chosen and any(ending in chosen for ending in endings(name))]
    return Targets(names, clashes)


def taken_for_experts(model: PreTrainedModel, names: list[str]) -> list[str]:
    """Those of the names that PEFT, reading them from a saved adapter, would take for parameters of the experts."""
    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:
        # Before PEFT did so.
        return []
    taken = []
    for name in names:
        config = LoraConfig(target_modules=[name])
        try:
            convert_peft_config_for_transformers(config, model=model, conversions=None)
        except ValueError:
            # One half of what is one parameter of the experts.
            taken.append(name)
        else:
            if name not in config.target_modules:
                taken.append(name)
    return taken


def without_adapters(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a model by the names that they have without adapters, and none of the adapters' own."""
    layers = adapter_layers(model)
    for name, module in model.named_modules():
        plain = plain_name(name, layers)
        if plain and not any(part in f".{name}." for part in (".modules_to_save.", ".original_module.")):
            # A module comes after the layer that an adapter has put in its place.
            yield plain, module


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer of Transformers' models, perhaps quantised."""
    return isinstance(module, nn.Linear | Conv1D)


def matches(name: str, patterns: str | list[str] | None) -> bool:
    """Whether PEFT would take a module for one that is named: by a regular expression, or by how its name ends."""
    if isinstance(patterns, str):
        return re.fullmatch(patterns, name) is not None
    return any(name == pattern or name.endswith(f".{pattern}") for pattern in patterns or [])


def endings(name: str) -> list[str]:
    """The shorter names by which PEFT would find a module too."""
    parts = name.split(".")
    return [".".join(parts[index:]) for index in range(1, len(parts))]


def check_experts(model: PreTrainedModel, args: R2FConfig) -> None:
    """
    Refuse to pass over experts in silence: a mixture may hold the weights of all of them in one parameter, without
    linear layers.

    Raises:
        `ValueError`: Naming the first such module that is targeted and not excluded, and the settings that leave all
            of them out.
    """

    def targeted(names: list[str]) -> bool:
        named = args.target_modules == "all-linear" or any(matches(name, args.target_modules) for name in names)
        return named and not any(matches(name, args.exclude_modules) for name in names)

    # Parts that text does not reach may have parameters of any shape.
    reached = set(model.get_decoder().parameters())
    experts: dict[str, tuple[str, tuple[int, ...]]] = {}
    layers = adapter_layers(model)
    for name, parameter in model.named_parameters():
        owner, _, attribute = name.rpartition(".")
        module = plain_name(owner, layers)
        if (
            module
            and len(whole_shape(parameter)) == 3
            and parameter in reached
            and not isinstance(model.get_submodule(owner), nn.Conv1d)
            # A target may also name the parameter, or one of the layers whose weights it holds.
            and targeted([module, f"{module}.{attribute}", *(f"{module}.{part}" for part in HELD.get(attribute, ()))])
        ):
            experts.setdefault(module, (attribute, tuple(whole_shape(parameter))))
    if not experts:
        return
    module, (attribute, shape) = next(iter(experts.items()))
    raise ValueError(
        f"{module} holds its weights in a parameter of three dimensions ({attribute}, {shape}), as mixtures hold "
        "those of all experts, and R2F cannot write them. To change only the rest of the model, leave such modules "
        f"out: {exclude_too(args, experts)}."
    )


def exclude_too(args: R2FConfig, names: Iterable[str]) -> str:
    """The setting that leaves out further modules, by how their names end."""
    kinds = sorted({name.rpartition(".")[2] for name in names})
    if isinstance(args.exclude_modules, str):
        excluded = rf"{args.exclude_modules}|(.*\.)?({'|'.join(kinds)})"
    else:
        excluded = [*(args.exclude_modules or []), *kinds]
    return f"`exclude_modules={json.dumps(excluded)}`"


def check_stacking(model: PeftModel, args: R2FConfig, names: list[str]) -> None:
    """
    Refuse an adapter that PEFT could not load next to those that the model carries.

    Args:
        model ([`~peft.PeftModel`]):
            The model with its own adapters.
        args ([`R2FConfig`]):
            The settings.
        names (`list[str]`):
            The modules of the adapter that will take the updates.

    Raises:
        `ValueError`: With the setting that leaves out what is in the way.
    """
    on_parameters = [name for name, config in model.peft_config.items() if getattr(config, "target_parameters", None)]
    taken = taken_for_experts(model.get_base_model(), names)
    if taken and on_parameters:
        raise ValueError(
            f"The adapter {on_parameters[0]!r} has pairs on parameters of the experts, and PEFT cannot load one with "
            f"pairs on {taken[0]} next to it. Leave such modules out: {exclude_too(args, taken)}."
        )
