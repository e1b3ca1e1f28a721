"""DeepSpeed's ZeRO-2 and ZeRO-3: what R2F works with, and when its gradients are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from transformers import PreTrainedModel

from .sharding import is_partitioned


# What of DeepSpeed's configuration is refused, and why.
_PIECES = "under which weights do not lie in one piece a process, each written where it is"
_PRECISION = (
    "which rounds probes and weights to half precision; it may come from `bf16` or `fp16` in a recipe or R2FConfig, "
    "or from accelerate's `mixed_precision`. A model that is loaded in bf16 computes in it without (`dtype: bfloat16`)"
)
REFUSED = {
    "optimizer": "but the probes have their own (`optim`), and are drawn anew after each step",
    "scheduler": "but the learning rate is R2FConfig's (`lr_scheduler_type`)",
    "fp16.enabled": _PRECISION,
    "bf16.enabled": _PRECISION,
    "torch_autocast.enabled": _PRECISION,
    "tensor_parallel.autotp_size": "under which probes do not see their layers whole",
    "zero_optimization.offload_optimizer.device": "but the probes' optimizer has nothing to put there",
    "zero_optimization.offload_param.device": _PIECES,
    "zero_optimization.zero_hpz_partition_size": _PIECES,
    "zero_optimization.mics_shard_size": _PIECES,
    "zero_optimization.zero_quantized_weights": _PIECES,
    "zero_optimization.zero_quantized_nontrainable_weights": _PIECES,
    "zero_optimization.zero_quantized_gradients": "which adds an error that is taken for the gradient",
}


def check_zero(config: Mapping[str, Any], to_adapter: bool) -> None:
    """
    Refuse what R2F does not do under DeepSpeed.

    Args:
        config (`Mapping`):
            DeepSpeed's configuration.
        to_adapter (`bool`):
            Whether an adapter takes the updates.

    Raises:
        `ValueError`: With what to do instead.
    """
    for key, why in REFUSED.items():
        value: Any = config
        for part in key.split("."):
            value = (value or {}).get(part)
        # What the options are when they are off.
        if str(value).lower() not in ("none", "false", "{}", "-1", "0", "1"):
            raise ValueError(f"DeepSpeed's configuration has {key}={value!r}, {why}. Leave it out.")
    stage = config["zero_optimization"]["stage"]
    if stage not in (2, 3):
        raise ValueError(
            f"DeepSpeed's ZeRO-{stage} would share out nothing but the optimizer's state, of which probes have none. "
            "Launch without DeepSpeed, or with `stage: 3` to share out the weights."
        )
    if to_adapter:
        raise ValueError(
            'An adapter cannot take the updates (`update_target="adapter"`) under DeepSpeed. Launch without it; to '
            "share out the weights, load the model with `DistributedConfig(fsdp_size=...)`, from "
            "`transformers.distributed`."
        )


def check_precision(model: PreTrainedModel) -> None:
    """
    Refuse a model that ZeRO-3 has loaded in another precision than its own.

    Raises:
        `ValueError`: With what to do instead.
    """
    loaded_by_zero = any(map(is_partitioned, model.parameters()))
    if loaded_by_zero and model.config.dtype not in (None, model.dtype):
        raise ValueError(
            f"DeepSpeed has loaded the model in {model.dtype}, and not in {model.config.dtype}. Give R2FTrainer its "
            "name in place of the model, load it with `r2f_hf.models.from_pretrained`, or before R2FConfig is made."
        )


class BeforeStep:
    """
    Calls a function before each step of DeepSpeed's optimizer, until it is removed. That optimizer is none of torch's
    and has no hooks; the one within it takes several steps for one, each of a piece.

    Args:
        optimizer (`deepspeed.runtime.base_optimizer.ZeROOptimizer`):
            The optimizer.
        function (`Callable`):
            What to call.
    """

    def __init__(self, optimizer: Any, function: Callable[[], None]):
        self.optimizer, step = optimizer, optimizer.step

        def function_and_step(*args: Any, **kwargs: Any) -> None:
            if hasattr(optimizer, "empty_partition_cache"):
                # ZeRO-3's step begins with it too. What the backward pass has left whole could not be gathered.
                optimizer.empty_partition_cache()
            function()
            step(*args, **kwargs)

        optimizer.step = function_and_step

    def remove(self) -> None:
        """Leave the optimizer as it was."""
        del self.optimizer.step
