"""The way back: what a model that carries probes saves and loads is the plain model, whoever holds which variable."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed
from peft import PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..distributed import gather, is_sharded
from ..probes.lora_probe import DELTA, PROBE
from ..runs.weights import adapter_layers, plain_name, without_sharding


# What PEFT's `save_pretrained` takes and Transformers' does not.
ADAPTER_OPTIONS = (
    "safe_serialization",
    "selected_adapters",
    "save_embedding_layers",
    "path_initial_model_for_weight_conversion",
)

# What a model has of its own while it carries probes.
METHODS = ("state_dict", "load_state_dict", "save_pretrained", "push_to_hub")

# Where PEFT keeps the model behind the adapters.
PREFIX = "base_model.model."


class PlainNames:
    """
    Methods for the model behind the probes, and for the [`~peft.PeftModel`] around it, in the place of their own.

    PEFT wraps modules in place, so that the variable that the caller holds has the names of wrapped modules too. What
    is saved under these names loads as a model whose wrapped modules are drawn at random. With these methods the names
    are those of the plain model.
    """

    def state_dict(self: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The weights, without adapters and under the names of the plain model."""
        state = type(self).state_dict(self, *args, **kwargs)
        if args or kwargs.get("destination") is not None or kwargs.get("prefix"):
            # As a part of what holds it: a PeftModel, or DDP.
            return state
        plain = plain_names(self, state)
        named = {plain[name]: tensor for name, tensor in state.items() if plain[name] is not None}
        # In place, because a state dict also carries the versions of its modules.
        state.clear()
        state.update(named)
        return state

    def load_state_dict(self: nn.Module, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load weights that have the names of the plain model, or those of the wrapped one."""
        state, own = dict(state_dict), type(self).state_dict(self)
        for name, plain in plain_names(self, own).items():
            if plain is None:
                # The adapters stay as they are, unless they are given.
                state.setdefault(name, own[name])
            elif plain in state:
                state[name] = state.pop(plain)
        return type(self).load_state_dict(self, state, *args, **kwargs)


class PlainModel(PlainNames):
    """For the model behind the probes."""

    def save_pretrained(
        self: PreTrainedModel,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Save the plain model."""
        if state_dict is None and any(map(is_sharded, self.parameters())):
            # All processes have to call this, and one of them writes.
            is_main_process = is_main_process and torch.distributed.get_rank() == 0
            state_dict = gather(self.state_dict(keep_vars=True), keep=is_main_process)
            if not is_main_process:
                return
        with without_sharding(self):
            type(self).save_pretrained(self, save_directory, is_main_process, state_dict, **kwargs)


class PlainPeftModel(PlainNames):
    """For the PEFT model around it."""

    def save_pretrained(self: PeftModel, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """
        Save the plain model: there is no adapter to save.

        Only into the checkpoints of a Trainer of the caller's own goes the adapter, which that Trainer loads when it
        resumes. [`R2FCallback`] saves the model next to it.
        """
        folder, checkpoints = Path(save_directory).resolve(), vars(self).get("r2f_checkpoints")
        if folder.parent == checkpoints and folder.name.startswith(PREFIX_CHECKPOINT_DIR):
            if kwargs.get("state_dict") is None:
                kwargs["state_dict"] = type(self).state_dict(self)
            type(self).save_pretrained(self, save_directory, *args, **kwargs)
            return
        options = {name: value for name, value in kwargs.items() if name not in ADAPTER_OPTIONS}
        if options.get("state_dict") is not None:
            options["state_dict"] = plain_weights(self, options["state_dict"])
        self.get_base_model().save_pretrained(save_directory, **options)
        if options.get("is_main_process", True):
            # An adapter that was saved here before would be loaded in the model's place.
            for name in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME):
                (folder / name).unlink(missing_ok=True)


class UnchangedModel(PlainNames):
    """For the model behind an adapter that takes the updates: its weights have not forgotten anything."""

    def push_to_hub(self: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        """Refuse, before there is a repository."""
        self.save_pretrained()

    def save_pretrained(self: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        """Refuse."""
        raise ValueError(
            "This model is as it was before unlearning, because an adapter takes the updates: save the adapter with "
            "`trainer.save_model()`, or a plain model with `trainer.model.merge_and_unload().save_pretrained(folder)`."
        )


class AdaptedPeftModel:
    """For the PEFT model around it."""

    def save_pretrained(self: PeftModel, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save all adapters but the probes."""
        if kwargs.get("selected_adapters") is None:
            kwargs["selected_adapters"] = [name for name in self.peft_config if name != PROBE]
        type(self).save_pretrained(self, save_directory, *args, **kwargs)


class Unloading:
    """For PEFT's layer between the two: the plain model is again what it was, also in what is trainable."""

    def unload(self: nn.Module, *args: Any, **kwargs: Any) -> PreTrainedModel:
        """The model without adapters."""
        del self.unload, self.merge_and_unload
        return restored(self.unload(*args, **kwargs))

    def merge_and_unload(self: nn.Module, *args: Any, **kwargs: Any) -> PreTrainedModel:
        """The model without adapters, whose weights have taken them up."""
        del self.unload, self.merge_and_unload
        return restored(self.merge_and_unload(*args, **kwargs))


def plain_names(model: nn.Module, names: Iterable[str]) -> dict[str, str | None]:
    """From the names of weights to those that they have without adapters: `None` where they are an adapter's own."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    layers = adapter_layers(base)
    return {name: plain_name(name if base is model else name.removeprefix(PREFIX), layers) for name in names}


def plain_weights(model: PeftModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """
    The weights of the plain model among those that a Trainer has gathered of a wrapped one.

    Raises:
        `ValueError`: If some are not among them, such as those that an adapter leaves frozen under ZeRO-3.
    """
    plain = {name: name for name in state}
    if all(name.startswith(PREFIX) for name in state):
        plain = plain_names(model, state)
    weights = {plain[name]: tensor for name, tensor in state.items() if plain[name] is not None}
    base = model.get_base_model()
    own = plain_names(base, (name for name, _ in base.named_parameters()))
    missing = [name for name in own.values() if name is not None and name not in weights]
    if missing:
        raise ValueError(
            f"The result cannot be saved from here: {missing[0]} (of {len(missing)} weights) is spread over the "
            "processes. Call `save_full_model(trainer.model, folder, write=trainer.args.should_save)` on all of them, "
            "from `r2f_hf.runs.weights`."
        )
    return weights


def replace_methods(owner: nn.Module, methods: type) -> None:
    """Put methods in the place of an object's own. A copy of the object, also from a pickle, gets them for itself."""
    for name in dir(methods):
        if not name.startswith("_"):
            # Python would look a bound method up again where it unpickles it, and find the class's own.
            setattr(owner, name, partial(getattr(methods, name), owner))


def models_in(base: PreTrainedModel) -> list[PreTrainedModel]:
    """A model and its parts that are models themselves, such as the decoder: all of them can be saved."""
    return [module for module in base.modules() if isinstance(module, PreTrainedModel)]


def prepare_way_back(model: PeftModel, trainable: Mapping[str, bool], names: bool = True) -> None:
    """
    Let a wrapped model save and load as the plain model, and be it again once it is unloaded.

    Args:
        model ([`~peft.PeftModel`]):
            The wrapped model. If it carries an adapter that takes the updates, the model behind it refuses to be
            saved, and the PEFT model saves its adapters without the probes.
        trainable (`Mapping[str, bool]`):
            By plain name, whether a weight required a gradient before it was wrapped. PEFT freezes them. The weights
            of adapters that were there before are among them, by the names that they have.
        names (`bool`, *optional*, defaults to `True`):
            Whether the state dict of the PEFT model has plain names too.
    """
    base = model.get_base_model()
    base.r2f_trainable = dict(trainable)
    replace_methods(model.base_model, Unloading)
    to_adapter = DELTA in model.peft_config
    for part in models_in(base):
        replace_methods(part, UnchangedModel if to_adapter else PlainModel)
    if to_adapter:
        replace_methods(model, AdaptedPeftModel)
        return
    replace_methods(model, PlainPeftModel)
    if not names:
        del model.state_dict, model.load_state_dict


def give_back_gradients(model: PeftModel) -> None:
    """Let those weights require a gradient again that did before the model was wrapped. The probes do not."""
    base = model.get_base_model()
    trainable, layers = base.r2f_trainable, adapter_layers(base)
    for name, parameter in base.named_parameters():
        parameter.requires_grad_(trainable.get(plain_name(name, layers) or name, False))


def restored(base: PreTrainedModel) -> PreTrainedModel:
    """A model without adapters, with its own methods, and trainable where it was before it was wrapped."""
    base.__dict__.pop("peft_config", None)
    for part in models_in(base):
        for name in METHODS:
            part.__dict__.pop(name, None)
    trainable = base.__dict__.pop("r2f_trainable", {})
    for name, parameter in base.named_parameters():
        parameter.requires_grad_(trainable.get(name, parameter.requires_grad))
    return base


def give_back_methods(model: PeftModel) -> None:
    """Let a PEFT model that keeps adapters of its own have its own methods again, and its parts too."""
    for owner in (model, model.base_model, *models_in(model.get_base_model())):
        for name in (*METHODS, "unload", "merge_and_unload", "r2f_trainable"):
            owner.__dict__.pop(name, None)


def unwrap(base: PreTrainedModel) -> PreTrainedModel:
    """Take all adapters off a model, in place, also where the PEFT model around it is gone."""
    layers = adapter_layers(base)
    for name in layers:
        parent, _, child = name.rpartition(".")
        # A layer may stand in the place of another adapter's.
        if plain_name(name, layers) == name:
            setattr(base.get_submodule(parent), child, base.get_submodule(name).get_base_layer())
    return restored(base)
