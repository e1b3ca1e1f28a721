"""What takes the updates: the model's own weights, or a LoRA adapter in their place."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..gradients import LowRankGradient, named_seed
from ..probes import LoraProbe
from ..probes.lora_probe import DELTA
from ..runs.files import written_aside
from ..runs.weights import WEIGHTS_FILES, full_state_dict, load_full_model_, save_full_model
from .adapter import add_to_pair_
from .weights import add_low_rank_all_, align_


class WeightsTarget:
    """The weights behind the probes take the updates. What is saved is the plain model."""

    # The name of the adapter that takes the updates.
    adapter: str | None = None

    def check(self, model: PeftModel) -> None:
        """Prepare the weights for updates, in place. There is nothing to refuse."""
        align_(model.parameters())

    def write(
        self,
        probes: Sequence[LoraProbe],
        gradient: LowRankGradient,
        alphas: Sequence[float],
        seed: int,
        step: int,
    ) -> float:
        """
        Add the gradients of modules of one shape, each times its `alpha`.

        Args:
            probes (`Sequence[LoraProbe]`):
                The probes on the modules.
            gradient ([`LowRankGradient`]):
                The gradients, with the modules as the first dimension.
            alphas (`Sequence[float]`):
                Signed steps; 0 for modules that are left alone.
            seed (`int`):
                Seed of the run, for stochastic rounding.
            step (`int`):
                Optimizer step, for stochastic rounding.

        Returns:
            `float`: The squared norm of what could not be written: nothing.
        """
        seeds = [named_seed(seed, step, probe.name, "rounding") for probe in probes]
        weights = [probe.weight for probe in probes]
        add_low_rank_all_(weights, gradient, alphas, seeds, transposed=probes[0].layer.fan_in_fan_out)
        return 0.0

    def state(self, model: PeftModel) -> dict[str, Tensor]:
        """The weights that a run may change, references and not copies, under the names of the plain model."""
        return full_state_dict(model)

    def save(self, model: PeftModel, folder: str | os.PathLike, write: bool = True) -> None:
        """
        Save the plain model. Where weights are sharded, all processes have to call it.

        Args:
            model ([`~peft.PeftModel`]):
                The wrapped model.
            folder (`str` or `os.PathLike`):
                The folder to save to.
            write (`bool`, *optional*, defaults to `True`):
                Whether this process writes.
        """
        save_full_model(model, folder, write)
        if write:
            # An adapter that an earlier run has left would be loaded on top of the model, or in its place.
            for name in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME):
                (Path(folder) / name).unlink(missing_ok=True)

    def load_(self, model: PeftModel, folder: str | os.PathLike) -> None:
        """Load what [`~WeightsTarget.save`] saved, in place."""
        load_full_model_(model, folder)


class AdapterTarget:
    """
    An ordinary LoRA adapter takes the updates, and the weights stay as they are. What is saved is the adapter.

    Args:
        adapter (`str`, *optional*, defaults to `"r2f"`):
            Name of the adapter, which must be active and not trained.
    """

    def __init__(self, adapter: str = DELTA):
        self.adapter = adapter

    def check(self, model: PeftModel) -> None:
        """
        Refuse an adapter that cannot take the updates.

        Raises:
            `ValueError`: If the adapter is not there, not active, or trained itself.
        """
        if self.adapter not in model.base_model.active_adapters:
            raise ValueError(f"The model has no active adapter {self.adapter!r} to take the updates.")
        trained = [parameter for name, parameter in model.named_parameters() if f".{self.adapter}." in name]
        if any(parameter.requires_grad for parameter in trained):
            raise ValueError(
                f"The adapter {self.adapter!r} takes the updates, so the optimizer must not train it: "
                f"`model.set_requires_grad({self.adapter!r}, False)`."
            )

    def write(
        self,
        probes: Sequence[LoraProbe],
        gradient: LowRankGradient,
        alphas: Sequence[float],
        seed: int,
        step: int,
    ) -> float:
        """
        Add the gradients to the modules' pairs. See [`WeightsTarget.write`].

        Returns:
            `float`: The squared norm of what the adapter's rank discards.
        """
        discarded = 0.0
        for probe, update, alpha in zip(probes, gradient.unbind(), alphas, strict=True):
            if alpha:
                A, B = (side[self.adapter].weight for side in (probe.layer.lora_A, probe.layer.lora_B))
                scaling = probe.layer.scaling[self.adapter]
                discarded += (scaling**2 * add_to_pair_(A, B, update, alpha / scaling)).item()
        return discarded

    @torch.no_grad()
    def state(self, model: PeftModel) -> dict[str, Tensor]:
        """The weights of the adapter, references and not copies, under the names that PEFT saves them by."""
        # Without these arguments, PEFT would gather a sharded model whole, and would save embeddings as it sees fit.
        pairs = {name: weight.detach() for name, weight in model.named_parameters() if f".{self.adapter}." in name}
        return get_peft_model_state_dict(model, pairs, adapter_name=self.adapter, save_embedding_layers=False)

    def save(self, model: PeftModel, folder: str | os.PathLike, write: bool = True) -> None:
        """Save the adapter, so that `PeftModel.from_pretrained` loads it. See [`WeightsTarget.save`]."""
        if not write:
            return
        with written_aside(folder) as aside:
            model.peft_config[self.adapter].save_pretrained(str(aside))
            state = {name: tensor.contiguous() for name, tensor in self.state(model).items()}
            save_file(state, aside / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        # A model that an earlier run has left would be taken for the result.
        for path in Path(folder).iterdir():
            if WEIGHTS_FILES.fullmatch(path.name) or path.name == "config.json":
                path.unlink()

    def load_(self, model: PeftModel, folder: str | os.PathLike) -> None:
        """
        Load what [`~AdapterTarget.save`] saved, in place.

        Raises:
            `ValueError`: If the saved adapter is of other modules.
        """
        saved = load_file(Path(folder) / SAFETENSORS_WEIGHTS_NAME)
        different = sorted(saved.keys() ^ self.state(model).keys())
        if different:
            raise ValueError(f"The adapter in {os.fspath(folder)} is of other modules: {different[:3]}.")
        set_peft_model_state_dict(model, saved, adapter_name=self.adapter)


Target = WeightsTarget | AdapterTarget

# The targets by the names that `update_target` takes.
TARGETS: dict[str, type[Target]] = {"weights": WeightsTarget, "adapter": AdapterTarget}
