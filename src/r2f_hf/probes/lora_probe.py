"""The LoRA pairs of a PEFT model, used as probes of the full gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..distributed import copy_, is_partitioned, is_row_sharded
from .lora_backward import Sketching


# Names of the adapters: the pairs that are read, and what takes the updates in place of the weights.
PROBE, DELTA = "r2f_probe", "r2f"

# Probes with a larger scaling `lora_alpha / r` would disturb the forward pass.
MAX_SCALING = 1e-3


@dataclass
class LoraProbe:
    """
    One LoRA pair of a PEFT model and the weight that it probes.

    Args:
        name (`str`):
            Name of the module in the model without adapters, such as `model.layers.0.mlp.up_proj`. It seeds the draws.
        layer (`peft.tuners.lora.Linear`):
            PEFT's layer around the module.
        adapter (`str`):
            Name of the adapter.
        delta (`str`, *optional*):
            Name of the adapter that takes the updates in place of the module's own weight.
    """

    name: str
    layer: LoraLayer
    adapter: str
    delta: str | None = None

    @property
    def weight(self) -> Tensor:
        """The module's own weight."""
        return self.layer.get_base_layer().weight

    @property
    def A(self) -> nn.Parameter:
        """Right probe, of shape `(r, in_features)`."""
        return self.layer.lora_A[self.adapter].weight

    @property
    def B(self) -> nn.Parameter:
        """Left probe, of shape `(out_features, r)`."""
        return self.layer.lora_B[self.adapter].weight

    @property
    def rank(self) -> int:
        """Rank of the LoRA pair."""
        return self.layer.r[self.adapter]

    def begin(self) -> None:
        """Let the pair have gradients without a forward pass of its own."""
        # What ZeRO-3 has shared out comes together in the pair's own forward pass alone.
        if not is_partitioned(self.A):
            self.layer.lora_variant[self.adapter] = Sketching()
            # The inputs are kept as they are, one tensor for all the layers that it goes into.
            self.layer.cast_input_dtype_enabled = set(self.layer.lora_A) != {self.adapter}

    @torch.no_grad()
    def clear(self) -> None:
        """Make the pair add nothing to the module, as PEFT's own initialisation does."""
        self.layer.lora_variant.pop(self.adapter, None)
        self.layer.cast_input_dtype_enabled = True
        copy_(self.B, torch.zeros(self.layer.out_features, self.rank))

    def gradients(self) -> tuple[Tensor, Tensor]:
        """
        What the pair's gradients are now, in `A` and in `B`. All processes have to call it.

        Raises:
            `RuntimeError`: If the pair has no gradient.
        """
        grad_A, grad_B = full_gradient(self.A), full_gradient(self.B)
        if grad_A is None or grad_B is None:
            raise RuntimeError(
                f"The LoRA pair of {self.name} has no gradient at the optimizer's step, so nothing can be "
                "reconstructed. Is the adapter trainable, and is the module used in the forward pass? What text does "
                "not reach, such as a vision tower, is left out with `exclude_modules` (of R2FConfig or LoraConfig)."
            )
        return grad_A, grad_B


def full_gradient(parameter: nn.Parameter) -> Tensor | None:
    """The gradient of a parameter, which DeepSpeed keeps elsewhere, in pieces. All processes have to call it then."""
    if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
        from deepspeed.utils import safe_get_full_grad

        return safe_get_full_grad(parameter)
    return parameter.grad


def find_probes(model: nn.Module, writable: bool = True) -> list[LoraProbe]:
    """
    The LoRA pairs of a PEFT model that can be decoded and written.

    Args:
        model ([`~peft.PeftModel`]):
            A model with one trainable LoRA adapter.
        writable (`bool`, *optional*, defaults to `True`):
            Whether the weights behind the pairs take the updates. If an adapter does so, they may be quantised.

    Returns:
        `list[LoraProbe]`: In the model's order.

    Raises:
        `TypeError`: If the model is not a PEFT model.
        `ValueError`: If the adapter is not plain LoRA without dropout, or its scaling is so large that the model would
            notice the probes, or a targeted weight is quantised, tied to the embeddings or otherwise not a linear
            layer's own.
    """
    if not isinstance(model, PeftModel):
        raise TypeError(
            f"R2FCallback needs a PEFT model with a LoRA adapter, got {type(model).__name__}. Wrap the model with "
            "`get_peft_model(model, LoraConfig(...))`, or use R2FTrainer, which does so itself."
        )
    adapter = model.active_adapter
    config = model.peft_config[adapter]
    if (
        config.peft_type != "LORA"
        or config.use_dora
        or config.lora_dropout
        or config.modules_to_save
        or config.bias != "none"
        or config.lora_bias
    ):
        raise ValueError(
            f"Adapter {adapter!r} cannot serve as a probe: it must be plain LoRA (no DoRA, `lora_dropout=0.0`, "
            '`bias="none"`, `lora_bias=False`, no `modules_to_save`).'
        )
    embeddings = model.get_input_embeddings().weight
    prefix = "base_model.model."
    probes = []
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer) or adapter not in layer.r:
            continue
        probe = LoraProbe(name.removeprefix(prefix), layer, adapter)
        base = layer.get_base_layer()
        plain = type(layer) is LoraLinear and isinstance(base, nn.Linear | Conv1D) and base.weight.is_floating_point()
        # Beside an adapter that takes the updates the weight may be of any kind; the pair has to be linear.
        linear = adapter in layer.lora_A and isinstance(layer.lora_A[adapter], nn.Linear)
        if not (plain if writable else linear):
            raise ValueError(
                f"{probe.name} is a {type(base).__name__} under {type(layer).__module__}.{type(layer).__name__}; a "
                "reconstructed gradient can only be written into floating-point linear layers. Let an adapter "
                'take the updates (`update_target="adapter"`), load the model without quantisation, or leave the '
                "module out of `target_modules`."
            )
        if not is_row_sharded(base.weight):
            raise ValueError(
                f"{probe.name} is shared out over processes by columns (tensor parallelism), and a reconstructed "
                "gradient is written by rows. Shard the weights with `DistributedConfig(fsdp_size=...)` alone."
            )
        if layer.scaling[adapter] > MAX_SCALING:
            raise ValueError(
                f"The adapter's scaling is {layer.scaling[adapter]:g}: its random probes would change what the model "
                f"computes. Use `lora_alpha={1e-6 * config.r:g}` with `r={config.r}`."
            )
        if writable and base.weight is embeddings:
            raise ValueError(
                f"{probe.name} shares its weight with the input embeddings, which would move too. Leave it out of "
                "`target_modules` or name it in `exclude_modules`."
            )
        probes.append(probe)
    return probes


def check_ranks(probes: list[LoraProbe], held_out: int) -> None:
    """
    Refuse ranks that cannot work, before anything has changed.

    Raises:
        `ValueError`: If a rank exceeds a dimension of its module, or leaves no row for the decoder.
    """
    for probe in probes:
        smallest = min(probe.layer.in_features, probe.layer.out_features)
        if probe.rank > smallest:
            raise ValueError(
                f"Rank {probe.rank} exceeds a dimension of {probe.name} ({probe.layer.out_features} x "
                f"{probe.layer.in_features}). Use a rank of at most {smallest}, or leave the module out of "
                "`target_modules`."
            )
        if held_out >= probe.rank:
            raise ValueError(f"held_out={held_out} leaves no row of a rank-{probe.rank} probe for the decoder.")
