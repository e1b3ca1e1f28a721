"""The full model behind a probe adapter: written and read as a plain Transformers model."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from ..distributed import copy_, gather, is_sharded, whole_shape
from .files import written_aside


# As Transformers names them, in one file or in several.
WEIGHTS_FILES = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


def full_state_dict(model: PeftModel) -> dict[str, Tensor]:
    """
    The weights of the model behind the adapters, under the names that it has without them.

    Args:
        model ([`~peft.PeftModel`]):
            The wrapped model.

    Returns:
        `dict[str, torch.Tensor]`: The parameters and buffers themselves; of sharded ones see [`gather`].
    """
    adapter_prefixes = (model.base_model.prefix,)
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in model.get_base_model().state_dict(keep_vars=True).items()
        if not any(part.startswith(adapter_prefixes) for part in name.split("."))
    }


def save_full_model(model: PeftModel, folder: str | os.PathLike, write: bool = True) -> None:
    """
    Save the model behind the adapters so that `AutoModelForCausalLM.from_pretrained` loads it, with no trace of them.

    It is written aside and renamed into place: what was there stays whole until the new one is. Where weights are
    sharded, all processes have to call it.

    Args:
        model ([`~peft.PeftModel`]):
            The wrapped model.
        folder (`str` or `os.PathLike`):
            Where to.
        write (`bool`, *optional*, defaults to `True`):
            Whether it is this process that writes.
    """
    state_dict = gather(full_state_dict(model), keep=write)
    if not write:
        return
    base = model.get_base_model()
    # Transformers would gather the shards itself, those of the adapters too.
    sharding = base.config.__dict__.pop("distributed_config", None)
    try:
        save_whole(base, folder, state_dict)
    finally:
        if sharding is not None:
            base.config.distributed_config = sharding


def save_whole(model: PreTrainedModel, folder: str | os.PathLike, state_dict: dict[str, Tensor] | None = None) -> None:
    """As [`~transformers.PreTrainedModel.save_pretrained`], but what was there stays whole until the new one is."""
    with written_aside(folder) as aside:
        model.save_pretrained(aside, state_dict=state_dict)
        written = {path.name for path in aside.iterdir()}
    # Weights in another number of files would be found first, or be read by no one.
    for path in Path(folder).iterdir():
        if WEIGHTS_FILES.fullmatch(path.name) and path.name not in written:
            path.unlink()


def weights_hash(state_dict: Mapping[str, Tensor]) -> str:
    """
    A SHA-256 over all weights: any change of any of them changes it. Sharded ones are gathered one at a time, and all
    processes have to call it.

    Args:
        state_dict (`Mapping[str, torch.Tensor]`):
            The weights, under the names of the plain model.

    Returns:
        `str`: 64 hexadecimal digits.
    """

    def digest(name: str) -> bytes:
        tensor = gather({name: state_dict[name]})[name].detach().cpu().contiguous()
        found = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.flatten().view(torch.uint8).numpy())
        return found.digest()

    names = sorted(state_dict)
    if any(is_sharded(tensor) for tensor in state_dict.values()):
        # Processes have to gather the same tensors in the same order, and a thread would do so on the first GPU.
        return hashlib.sha256(b"".join(map(digest, names))).hexdigest()
    # hashlib lets other threads work meanwhile.
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
        `ValueError`: If its weights have other names or shapes.
    """
    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(f"{os.fspath(folder)} holds no model (no config.json).")
    base = model.get_base_model()
    dtype = next(base.parameters()).dtype
    saved = type(base).from_pretrained(folder, dtype=dtype, local_files_only=True)
    # Under ZeRO-3 it comes shared out as the model is.
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
    """[`weights_hash`] of a folder with a model, or with an adapter alone."""
    adapter = Path(folder) / SAFETENSORS_WEIGHTS_NAME
    if adapter.is_file():
        return weights_hash(load_file(adapter))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
    return weights_hash(model.state_dict())
