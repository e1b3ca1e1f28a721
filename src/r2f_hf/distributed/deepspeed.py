"""DeepSpeed's ZeRO-2 and ZeRO-3: which configurations R2F works with, and when the gradients are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from transformers import PreTrainedModel

from .sharding import is_partitioned


# Options of DeepSpeed's configuration that are refused, and why.
_PIECES = "under which a process does not hold its part of a weight in one piece, to be written in place"
_PRECISION = (
    "which rounds probes and weights to half precision; it may come from `bf16` or `fp16` in a recipe or R2FConfig, "
    "or from accelerate's `mixed_precision`. A model loaded with `dtype: bfloat16` computes in bf16 without it"
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
    Refuse configurations of DeepSpeed that R2F does not work with.

    Args:
        config (`Mapping`):
            DeepSpeed's configuration.
        to_adapter (`bool`):
            Whether an adapter takes the updates.

    Raises:
        `ValueError`: For such a configuration. The message says what to do instead.
    """
    for key, why in REFUSED.items():
        value: Any = config
        for part in key.split("."):
            value = (value or {}).get(part)
        # The values of options that are off.
        if str(value).lower() not in ("none", "false", "{}", "-1", "0", "1"):
            raise ValueError(f"DeepSpeed's configuration has {key}={value!r}, {why}. Leave it out.")
    stage = config["zero_optimization"]["stage"]
    if stage not in (2, 3):
        raise ValueError(
            f"DeepSpeed's ZeRO-{stage} would shard nothing but the optimizer's state, and the probes have none. "
            "Launch without DeepSpeed, or with `stage: 3` to shard the weights."
        )
    if to_adapter:
        raise ValueError(
            'An adapter cannot take the updates (`update_target="adapter"`) under DeepSpeed. Launch without it; to '
            "shard the weights, load the model with `DistributedConfig(fsdp_size=...)`, from "
            "`transformers.distributed`."
        )


def check_precision(model: PreTrainedModel) -> None:
    """
    Refuse a model that ZeRO-3 has loaded in another dtype than its own.

    Raises:
        `ValueError`: For such a configuration. The message says what to do instead.
    """
    loaded_by_zero = any(map(is_partitioned, model.parameters()))
    if loaded_by_zero and model.config.dtype not in (None, model.dtype):
        raise ValueError(
            f"DeepSpeed has loaded the model in {model.dtype}, and not in {model.config.dtype}. Give R2FTrainer its "
            "name instead of the model, load it with `r2f_hf.models.from_pretrained`, or load it before R2FConfig is "
            "made."
        )


class BeforeStep:
    """
    Calls a function before each step of DeepSpeed's optimizer, until it is removed.

    DeepSpeed's optimizer is not one of torch's, and has no hooks. The torch optimizer within it takes several steps
    per step of the training loop, one for each piece.

    Args:
        optimizer (`deepspeed.runtime.base_optimizer.ZeROOptimizer`):
            DeepSpeed's optimizer.
        function (`Callable`):
            The function to call.
    """

    def __init__(self, optimizer: Any, function: Callable[[], None]):
        self.optimizer, step = optimizer, optimizer.step

        def function_and_step(*args: Any, **kwargs: Any) -> None:
            if hasattr(optimizer, "empty_partition_cache"):
                # ZeRO-3's own step begins with this too. Weights that the backward pass has left whole could otherwise
                # not be gathered.
                optimizer.empty_partition_cache()
            function()
            step(*args, **kwargs)

        optimizer.step = function_and_step

    def remove(self) -> None:
        """Leave the optimizer as it was."""
        del self.optimizer.step
