"""The full model behind a probe adapter: saved and loaded as a plain Transformers model."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_utils import remove_tied_weights_from_state_dict
from transformers.utils import CONFIG_NAME

from ..distributed import copy_, gather, is_sharded, whole_shape
from .files import written_aside


# The names that Transformers gives to files of weights, one or several.
WEIGHTS_FILES = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


def full_state_dict(model: PeftModel) -> dict[str, Tensor]:
    """
    The weights of the model behind the adapters, under the names that they have without adapters.

    Args:
        model ([`~peft.PeftModel`]):
            The wrapped model.

    Returns:
        `dict[str, torch.Tensor]`: The parameters and buffers themselves, not copies. [`gather`] makes sharded ones
        whole.
    """
    base = model.get_base_model()
    layers = adapter_layers(base)
    # The class's own, which has the names of the wrapped model.
    wrapped = type(base).state_dict(base, keep_vars=True)
    named = ((plain_name(name, layers), tensor) for name, tensor in wrapped.items())
    return {name: tensor for name, tensor in named if name is not None}


def adapter_layers(model: nn.Module) -> set[str]:
    """The names of the layers that adapters have put in the place of a model's modules."""
    return {name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


def plain_name(name: str, layers: Collection[str]) -> str | None:
    """
    The name that a module, weight or buffer of a wrapped model has without adapters.

    Args:
        name (`str`):
            Its name in the wrapped model.
        layers (`Collection[str]`):
            The layers of the adapters, see [`adapter_layers`].

    Returns:
        `str`, *optional*: `None` if it is an adapter's own.
    """
    plain: list[str] = []
    wrapped: list[str] = []
    for part in name.split("."):
        inside = ".".join(wrapped) in layers
        wrapped.append(part)
        if not inside:
            plain.append(part)
        elif part != "base_layer":
            return None
    return ".".join(plain)


def save_full_model(model: PeftModel, folder: str | os.PathLike, write: bool = True) -> None:
    """
    Save the model behind the adapters as a plain model, which `AutoModelForCausalLM.from_pretrained` loads.

    It is written aside and renamed into place, so that a model that was there stays whole until the new one is whole.
    Where weights are sharded, all processes have to call this.

    Args:
        model ([`~peft.PeftModel`]):
            The wrapped model.
        folder (`str` or `os.PathLike`):
            The folder to save to.
        write (`bool`, *optional*, defaults to `True`):
            Whether this process writes.
    """
    state_dict = gather(full_state_dict(model), keep=write)
    if not write:
        return
    base = model.get_base_model()
    with without_sharding(base):
        save_whole(base, folder, state_dict)


@contextmanager
def without_sharding(model: PreTrainedModel) -> Iterator[None]:
    """Leave out the part of a configuration with which Transformers would gather all shards itself, adapters' too."""
    sharding = model.config.__dict__.pop("distributed_config", None)
    try:
        yield
    finally:
        if sharding is not None:
            model.config.distributed_config = sharding


@contextmanager
def written_here(model: PreTrainedModel) -> Iterator[None]:
    """Let this process write the model. Transformers writes only in the first one, also with `save_on_each_node`."""
    model.should_save_on_this_rank = lambda is_main_process: is_main_process
    try:
        yield
    finally:
        del model.should_save_on_this_rank


def save_whole(model: PreTrainedModel, folder: str | os.PathLike, state_dict: dict[str, Tensor] | None = None) -> None:
    """Save a model as `save_pretrained` does, but a model that was there stays whole until the new one is whole."""
    with written_aside(folder) as aside, written_here(model):
        model.save_pretrained(aside, state_dict=state_dict)
        written = {path.name for path in aside.iterdir()}
    # Old weights in another number of files would be loaded instead of the new ones, or never be loaded.
    for path in Path(folder).iterdir():
        if WEIGHTS_FILES.fullmatch(path.name) and path.name not in written:
            path.unlink()


def weights_hash(state_dict: Mapping[str, Tensor]) -> str:
    """
    A SHA-256 over all weights. Any change of any weight changes it.

    Sharded weights are gathered one at a time. In this case all processes have to call this.

    Args:
        state_dict (`Mapping[str, torch.Tensor]`):
            The weights, under the names of the plain model.

    Returns:
        `str`: 64 hexadecimal digits.
    """

    def digest(name: str) -> bytes:
        tensor = gather({name: state_dict[name]})[name].detach().cpu().contiguous()
        sha256 = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha256.update(tensor.flatten().view(torch.uint8).numpy())
        return sha256.digest()

    names = sorted(state_dict)
    if any(is_sharded(tensor) for tensor in state_dict.values()):
        # All processes have to gather the same tensors in the same order, and threads would gather on the first GPU.
        return hashlib.sha256(b"".join(map(digest, names))).hexdigest()
    # While hashlib computes, other threads can work.
    with ThreadPoolExecutor() as pool:
        return hashlib.sha256(b"".join(pool.map(digest, names))).hexdigest()


@torch.no_grad()
def load_full_model_(model: PeftModel, folder: str | os.PathLike) -> None:
    """
    Load weights saved by [`save_full_model`] into the model behind the adapters, in place.

    Args:
        model ([`~peft.PeftModel`]):
            The wrapped model.
        folder (`str` or `os.PathLike`):
            A folder that `from_pretrained` can read.

    Raises:
        `FileNotFoundError`: If the folder holds no model.
        `ValueError`: If the saved weights have other names or shapes than the model's.
    """
    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(f"{os.fspath(folder)} holds no model (no config.json).")
    base = model.get_base_model()
    dtype = next(base.parameters()).dtype
    saved = type(base).from_pretrained(folder, dtype=dtype, local_files_only=True)
    # Under ZeRO-3 the saved model is loaded in the same pieces as the model.
    saved = saved.state_dict(keep_vars=True)
    current = full_state_dict(model)
    different = sorted(
        name
        for name in current.keys() | saved.keys()
        if name not in current or name not in saved or whole_shape(current[name]) != whole_shape(saved[name])
    )
    if different:
        raise ValueError(f"The weights in {os.fspath(folder)} are another model's: they differ in {different[:5]}.")
    for name, tensor in current.items():
        copy_(tensor, saved[name])


def saved_weights_hash(folder: str | os.PathLike) -> str:
    """[`weights_hash`] of a folder with a model, or with only an adapter."""
    adapter = Path(folder) / SAFETENSORS_WEIGHTS_NAME
    if adapter.is_file():
        return weights_hash(load_file(adapter))
    return weights_hash(load_saved(folder).state_dict())


def load_saved(folder: str | os.PathLike) -> PreTrainedModel:
    """
    Load a saved model as what it was saved from, by the class that its configuration names.

    Args:
        folder (`str` or `os.PathLike`):
            A folder with a model.

    Raises:
        `FileNotFoundError`: If the folder holds no model.
        `ValueError`: If the class is not known, because its code lies in the folder.
    """
    file = Path(folder) / CONFIG_NAME
    if not file.is_file():
        raise FileNotFoundError(f"{os.fspath(folder)} holds no model (no {CONFIG_NAME}).")
    content = json.loads(file.read_text(encoding="utf-8"))
    saved_class = architecture(content.get("architectures"))
    if saved_class is AutoModelForCausalLM and "auto_map" in content:
        names = ", ".join(content.get("architectures") or ["model"])
        raise ValueError(
            f"The code of the {names} in {os.fspath(folder)} lies in files of its own, and none of Transformers' "
            "classes is called so. Code from a folder is not run here."
        )
    return saved_class.from_pretrained(folder, dtype="auto", local_files_only=True)


def architecture(names: Sequence[str] | None) -> type:
    """
    The class of Transformers that a configuration names. `AutoModelForCausalLM` knows only some of those that can be
    unlearned: not LLaVA and other models that also read pictures.

    Args:
        names (`Sequence[str]`, *optional*):
            `architectures` of the configuration.

    Returns:
        `type`: `AutoModelForCausalLM` if it names none that Transformers has and that generates text.
    """
    classes = (getattr(transformers, name, None) for name in names or [])
    generating = (each for each in classes if isinstance(each, type) and issubclass(each, PreTrainedModel))
    return next((each for each in generating if each.can_generate()), AutoModelForCausalLM)


def check_can_be_saved(
    folder: str | os.PathLike, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None
) -> None:
    """
    Refuse what could not be saved at the end: save all but the weights now, and leave nothing of it.

    Args:
        folder (`str` or `os.PathLike`):
            The output folder.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.
        model ([`~transformers.PreTrainedModel`], *optional*):
            The model, if it is saved.

    Raises:
        `ValueError`: With what Transformers says.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".checking-") as aside:
        try:
            tokenizer.save_pretrained(aside)
            if model is not None:
                with without_sharding(model):
                    # Copies, because saving takes things out.
                    config, generation = copy.deepcopy((model.config, getattr(model, "generation_config", None)))
                config.save_pretrained(aside)
                if not any(map(is_sharded, model.parameters())):
                    # Refuses weights that share memory, unless the class says so.
                    remove_tied_weights_from_state_dict(model.state_dict(), model)
                if generation is not None:
                    align_special_tokens(generation, tokenizer)
                    generation.save_pretrained(aside)
        except Exception as error:
            raise ValueError(f"The result could not be saved once it is there: {str(error).strip()}") from error


def align_special_tokens(config: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """As Trainer will: Transformers saves settings that are at odds only if they are as they were loaded."""
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        token, known = getattr(tokenizer, name), getattr(config, name)
        if token is not None and token not in (known if isinstance(known, list) else [known]):
            setattr(config, name, token)
