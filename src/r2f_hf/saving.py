"""The full model behind a probe adapter: written and read as a plain Transformers model."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor


def full_state_dict(model: PeftModel) -> dict[str, Tensor]:
    """
    The weights of the model behind the adapters, under the names that it has without them.

    Args:
        model ([`~peft.PeftModel`]):
            The wrapped model.

    Returns:
        `dict[str, torch.Tensor]`: References, not copies.
    """
    adapter_prefixes = (model.base_model.prefix,)
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in model.get_base_model().state_dict().items()
        if not any(part.startswith(adapter_prefixes) for part in name.split("."))
    }


def save_full_model(model: PeftModel, folder: str | os.PathLike) -> None:
    """
    Save the model behind the adapters so that `AutoModelForCausalLM.from_pretrained` loads it, with no trace of them.

    Args:
        model ([`~peft.PeftModel`]):
            The wrapped model.
        folder (`str` or `os.PathLike`):
            Where to.
    """
    model.get_base_model().save_pretrained(folder, state_dict=full_state_dict(model))


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
    saved = type(base).from_pretrained(folder, dtype=dtype, local_files_only=True).state_dict()
    current = full_state_dict(model)
    different = sorted(
        name
        for name in current.keys() | saved.keys()
        if name not in current or name not in saved or current[name].shape != saved[name].shape
    )
    if different:
        raise ValueError(f"The weights in {os.fspath(folder)} are another model's: they differ in {different[:5]}.")
    for name, tensor in current.items():
        tensor.copy_(saved[name])
