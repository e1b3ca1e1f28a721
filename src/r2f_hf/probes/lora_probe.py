"""The LoRA pairs of a PEFT model, used as probes of the full gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from ..distributed import copy_, is_partitioned, is_row_sharded, whole_shape
from .lora_backward import Sketching


# Names of the two adapters: the first holds the pairs that are read, the second can take the updates.
PROBE, DELTA = "r2f_probe", "r2f"

# Why weights are not in memory, and what to do about it.
ON_META = (
    "`device_map` has left it on the disk or on the CPU, where the devices have no room for it, or the model was made "
    "under `torch.device('meta')`. Load the model where it fits: without `device_map`, in a smaller `dtype`, or "
    "sharded over processes (`DistributedConfig(fsdp_size=...)`)."
)

# Probes with a larger scaling `lora_alpha / r` would disturb the forward pass.
MAX_SCALING = 1e-3


@dataclass
class LoraProbe:
    """
    One LoRA pair of a PEFT model and the weight that it probes.

    Args:
        name (`str`):
            Name of the module in the model without adapters, such as `model.layers.0.mlp.up_proj`. It seeds the
            draws.
        layer (`peft.tuners.lora.Linear`):
            PEFT's layer around the module.
        adapter (`str`):
            Name of the adapter.
    """

    name: str
    layer: LoraLayer
    adapter: str

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
        """Let the pair get its gradients without a forward pass of its own."""
        # A pair that ZeRO-3 has partitioned is gathered only in its own forward pass, so it keeps that.
        if not is_partitioned(self.A):
            self.layer.lora_variant[self.adapter] = Sketching()
            # Without PEFT's cast, autograd keeps one input tensor for all the layers that read it.
            self.layer.cast_input_dtype_enabled = set(self.layer.lora_A) != {self.adapter}

    def add(self, factors: tuple[Tensor, Tensor] | None) -> None:
        """
        Let forward passes that are trained on compute with `W + U·Vᵀ`, from [`~LoraProbe.begin`] on.

        Args:
            factors (`tuple[torch.Tensor, torch.Tensor]`, *optional*):
                `U` of shape `(out_features, k)` and `V` of shape `(in_features, k)`. `None` ends it.
        """
        variant = self.layer.lora_variant.get(self.adapter)
        if variant is not None:
            variant.added = factors

    @torch.no_grad()
    def clear(self) -> None:
        """Make the pair add nothing to the module, as PEFT's own initialisation does."""
        self.layer.lora_variant.pop(self.adapter, None)
        self.layer.cast_input_dtype_enabled = True
        copy_(self.B, torch.zeros(self.layer.out_features, self.rank))

    def gradients(self) -> tuple[Tensor, Tensor]:
        """
        The gradients of the pair now, in `A` and in `B`. All processes have to call this.

        Raises:
            `RuntimeError`: If the pair has no gradient.
        """
        grad_A, grad_B = full_gradient(self.A), full_gradient(self.B)
        if grad_A is None or grad_B is None:
            raise RuntimeError(
                f"The LoRA pair of {self.name} has no gradient at the optimizer's step, so nothing can be "
                "reconstructed. Check that the adapter is trainable and that the forward pass uses the module. Leave "
                "out modules that text does not reach, such as a vision tower: name them in `exclude_modules` (of "
                "R2FConfig or LoraConfig)."
            )
        return grad_A, grad_B


def full_gradient(parameter: nn.Parameter) -> Tensor | None:
    """The gradient of a parameter. DeepSpeed keeps it elsewhere, in pieces, so all processes have to call this."""
    if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
        from deepspeed.utils import safe_get_full_grad

        return safe_get_full_grad(parameter)
    return parameter.grad


def find_probes(model: nn.Module, writable: bool = True) -> list[LoraProbe]:
    """
    Find the LoRA pairs of a PEFT model, and check that they can serve as probes.

    Args:
        model ([`~peft.PeftModel`]):
            A model with one trainable LoRA adapter.
        writable (`bool`, *optional*, defaults to `True`):
            Whether the weights behind the pairs take the updates. If an adapter takes them, the weights may be
            quantised.

    Returns:
        `list[LoraProbe]`: The probes, in the order of the model.

    Raises:
        `TypeError`: If the model is not a PEFT model.
        `ValueError`: If the adapter is not plain LoRA without dropout, or if its scaling is so large that the probes
            would change what the model computes. Also if a targeted weight cannot be written: it is quantised, tied
            to the embeddings, sharded by columns, not in memory, or not the weight of a linear layer.
    """
    if not isinstance(model, PeftModel):
        raise TypeError(
            f"R2F needs a PEFT model with a LoRA adapter, got {type(model).__name__}. Wrap the model with "
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
    probes, kinds = [], {}
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer) or adapter not in layer.r:
            continue
        # PEFT names the wrappers of further parameters of a module after the first.
        probe = LoraProbe(name.removeprefix(prefix).replace(".base_layer", ""), layer, adapter)
        base = layer.get_base_layer()
        if isinstance(layer, ParamWrapper):
            raise ValueError(
                f"PEFT has put a LoRA pair on a parameter of {probe.name} ({layer.parameter_name}), and R2F can only "
                "write the weights of linear layers. In a mixture of experts PEFT takes `all-linear`, `gate`, "
                "`gate_proj`, `up_proj` and `down_proj` for parameters of the experts. Name other modules in "
                "`target_modules`, such as those of the attention, and leave `target_parameters` out."
            )
        # If an adapter takes the updates, the weight may be of any kind. Only the pair has to be linear.
        pair = adapter in layer.lora_A and isinstance(layer.lora_A[adapter], nn.Linear)
        plain = type(layer) is LoraLinear and isinstance(base, nn.Linear | Conv1D) and base.weight.is_floating_point()
        if not (plain if writable else pair):
            advice = (
                'Let an adapter take the updates (`update_target="adapter"`), load the model without quantisation, or '
                "leave the module"
            )
            raise ValueError(
                f"{probe.name} is a {type(base).__name__} under {type(layer).__module__}.{type(layer).__name__}; a "
                "reconstructed gradient can only be written into floating-point linear layers. "
                f"{advice if pair else 'Leave it'} out of `target_modules`."
            )
        # Some quantised layers have none of this name.
        weight = getattr(base, "weight", None)
        if weight is not None and weight.device.type == "meta":
            raise ValueError(f"The weight of {probe.name} is on the meta device and not in memory: {ON_META}")
        if type(base) not in kinds:
            kinds[type(base)] = takes_a_pair(base, writable)
        if not kinds[type(base)]:
            raise ValueError(
                f"{probe.name} is a {type(base).__name__}, which does not compute `W x + b` with a weight of its own, "
                "as a linear layer does. Leave it out of `target_modules` or name it in `exclude_modules`."
            )
        if not is_row_sharded(weight):
            raise ValueError(
                f"{probe.name} is sharded over processes by columns (tensor parallelism), but a reconstructed "
                "gradient is written by rows. Shard the weights only with `DistributedConfig(fsdp_size=...)`."
            )
        if layer.scaling[adapter] > MAX_SCALING:
            raise ValueError(
                f"The adapter's scaling is {layer.scaling[adapter]:g}: its random probes would change what the model "
                f"computes. Use `lora_alpha={1e-6 * config.r:g}` with `r={config.r}`."
            )
        if writable and weight is embeddings:
            raise ValueError(
                f"{probe.name} shares its weight with the input embeddings, which would change too. Leave it out of "
                "`target_modules` or name it in `exclude_modules`."
            )
        probes.append(probe)
    return probes


def takes_a_pair(module: nn.Module, writable: bool = True) -> bool:
    """
    Whether a LoRA pair next to a module is a change of its weight. Classes that extend [`~torch.nn.Linear`], such as
    routers that also choose the experts, may compute something else.

    Args:
        module (`nn.Module`):
            The module. One that does not extend [`~torch.nn.Linear`] is left to PEFT.
        writable (`bool`, *optional*, defaults to `True`):
            Whether the module has to compute `W x + b`. If an adapter takes the updates, it has to return a tensor of
            that shape.
    """
    if writable and not isinstance(getattr(module, "weight", None), nn.Parameter):
        # Computed from other parameters, as under weight normalisation: what is written would be lost.
        return False
    if not isinstance(module, nn.Linear) or type(module).forward is nn.Linear.forward:
        return True
    if not module.weight.is_floating_point() or module.weight.element_size() == 1:
        # Quantised.
        return not writable
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(module.weight.device)

    # The module's own weights may be in pieces.
    weights = {name: draw(*whole_shape(weight)) for name, weight in module.named_parameters(recurse=False)}
    inputs = draw(3, module.in_features)
    try:
        with torch.no_grad():
            outputs = torch.func.functional_call(module, weights, (inputs,))
    except Exception:  # What a class of somebody else's raises is not known.
        return False
    if not isinstance(outputs, Tensor) or outputs.shape != (3, module.out_features):
        return False
    expected = linear(inputs, weights["weight"], weights.get("bias"))
    return not writable or bool((outputs - expected).norm() < 1e-2 * expected.norm())


def check_ranks(probes: list[LoraProbe], held_out: int) -> None:
    """
    Refuse ranks that cannot work, before anything is changed.

    Raises:
        `ValueError`: If a rank exceeds a dimension of its module, or leaves no row for the decoder.
    """
    sizes = [min(probe.layer.in_features, probe.layer.out_features) for probe in probes]
    small = [(size, probe) for size, probe in zip(sizes, probes, strict=True) if probe.rank > size]
    if small:
        probe = small[0][1]
        endings = sorted({probe.name.rpartition(".")[2] for _, probe in small})
        raise ValueError(
            f"Rank {probe.rank} exceeds a dimension of {probe.name} ({probe.layer.out_features} x "
            f"{probe.layer.in_features}). Use a rank of at most {min(size for size, _ in small)}, or name "
            f"{', '.join(endings)} in `exclude_modules`."
        )
    for probe in probes:
        if held_out >= probe.rank:
            raise ValueError(f"held_out={held_out} leaves no row of a rank-{probe.rank} probe for the decoder.")
