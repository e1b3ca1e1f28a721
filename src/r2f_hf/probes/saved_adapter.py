"""Saved LoRA adapters: loaded from a folder, and saved from factored gradients."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pad

from ..gradients import LowRankGradient


# How PEFT names the two halves of a pair in a saved adapter.
KEY = "base_model.model.{name}.lora_{side}.weight"


KEY_PATTERN = re.compile(r"base_model\.model\.(?P<name>.+)\.lora_(?P<side>[AB])\.weight")


# With any of these a module computes something other than `W x + s B A x`, and its gradients are no sketches of `G`.
VARIANTS = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
    "target_parameters",
)


# From a module's name to the tensors of its `A` and `B`.
Pairs = dict[str, tuple[Tensor, Tensor]]


@dataclass
class SavedAdapter:
    """
    A plain LoRA adapter, as PEFT saves it.

    Args:
        folder (`Path`):
            The folder that it was loaded from.
        config ([`~peft.LoraConfig`]):
            Its configuration.
        pairs (`dict[str, tuple[torch.Tensor, torch.Tensor]]`):
            `A` of shape `(r, in_features)` and `B` of shape `(out_features, r)` by module, in the dtype of the file.
    """

    folder: Path
    config: LoraConfig
    pairs: Pairs

    def scaling(self, name: str) -> float:
        """The scaling `s` of a module, which computes `W x + s B A x`."""
        patterns = self.config.alpha_pattern
        alpha = patterns.get(get_pattern_key(patterns, name), self.config.lora_alpha)
        rank = self.pairs[name][0].shape[0]
        return alpha / (rank**0.5 if self.config.use_rslora else rank)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> SavedAdapter:
        """
        Load an adapter from a folder.

        Raises:
            `FileNotFoundError`: If there is no such folder, or no adapter in safetensors in it.
            `ValueError`: If the adapter is not plain LoRA on linear layers, is damaged, or has weights that are not
                finite.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"There is no adapter folder {folder}.")
        if not (folder / CONFIG_NAME).is_file():
            raise FileNotFoundError(
                f"{folder} holds no adapter (no {CONFIG_NAME}). Pass what `save_pretrained` of a PEFT model "
                "wrote, or a checkpoint of its Trainer."
            )
        file = folder / SAFETENSORS_WEIGHTS_NAME
        if not file.is_file():
            raise FileNotFoundError(
                f"{folder} holds no {SAFETENSORS_WEIGHTS_NAME}. Adapters are loaded only from safetensors; a pickle "
                "(`adapter_model.bin`) can run code and is refused. Save the adapter with PEFT's `save_pretrained`."
            )
        try:
            config = PeftConfig.from_pretrained(str(folder))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder / CONFIG_NAME} is not a configuration that PEFT reads: {error!r}.") from error
        unsupported = [f"peft_type={config.peft_type}"] if config.peft_type != "LORA" else []
        unsupported += [name for name in VARIANTS if getattr(config, name, None)]
        if unsupported:
            raise ValueError(
                f"The adapter in {folder} is not plain LoRA ({', '.join(unsupported)}): its gradients are no sketches "
                "of the full gradient. Take the step with an ordinary `LoraConfig`."
            )
        try:
            tensors = load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged: {error}. Save the adapter again.") from error
        sides: dict[str, dict[str, Tensor]] = {"A": {}, "B": {}}
        for key, tensor in tensors.items():
            match = KEY_PATTERN.fullmatch(key)
            if match is None or tensor.ndim != 2:
                raise ValueError(
                    f"{file} holds {key}, which is not half of the LoRA pair of a linear layer. Take the step with "
                    'only linear `target_modules`, `bias="none"`, and no `modules_to_save` or new embeddings.'
                )
            if not tensor.isfinite().all():
                raise ValueError(
                    f"{key} in {file} is NaN or infinite: the training that wrote it has diverged. Take the step "
                    "again, with a smaller learning rate."
                )
            sides[match["side"]][match["name"]] = tensor
        return cls(folder, config, {name: (A, sides["B"][name]) for name, A in sides["A"].items()})


def save_as_adapter(
    gradients: Mapping[str, LowRankGradient],
    alpha: float,
    folder: str | os.PathLike,
    like: LoraConfig,
    base: str | None,
) -> None:
    """
    Save `alpha * U @ V.T` of every module as a LoRA adapter of scaling 1, which `PeftModel.from_pretrained` loads.

    Args:
        gradients (`Mapping[str, LowRankGradient]`):
            Factored gradients by module. The adapter has the rank of the widest; narrower ones are padded with zeros.
        alpha (`float`):
            Signed step size.
        folder (`str` or `os.PathLike`):
            The folder to save to.
        like ([`~peft.LoraConfig`]):
            Configuration of an adapter of the same modules.
        base (`str`, *optional*):
            Folder or name of the model that the adapter is for.
    """
    rank = max(gradient.U.shape[1] for gradient in gradients.values())
    tensors = {}
    for name, gradient in gradients.items():
        U, V = alpha * gradient.U, gradient.V
        # Both factors take an equal share of a column's length. Otherwise half precision could not hold the adapter.
        lengths = U.norm(dim=0), V.norm(dim=0)
        share = torch.where(lengths[0] * lengths[1] > 0, (lengths[1] / lengths[0]).sqrt(), 1.0)
        padding = (0, rank - U.shape[1])
        tensors[KEY.format(name=name, side="A")] = pad(V / share, padding).T.contiguous()
        tensors[KEY.format(name=name, side="B")] = pad(U * share, padding).contiguous()
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=sorted(gradients),
        fan_in_fan_out=like.fan_in_fan_out,
        task_type=like.task_type,
        base_model_name_or_path=base,
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    save_file(tensors, Path(folder) / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
