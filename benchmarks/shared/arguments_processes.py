"""Fields of TrainingArguments that take two processes, or two nodes, to show: for training_arguments.py."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch.distributed as dist
import transformers
from torch.distributed.distributed_c10d import _get_default_group

from r2f_hf.runs.checkpoints import last_whole_checkpoint
from shared.arguments_cases import Case, refused, shows
from shared.arguments_run import Bench, Run, same
from shared.arguments_special import special


def wrapper(name: str, value: Any, attribute: str) -> Case:
    """A setting of DDP that changes no step."""

    def observable(run: Run, base: Run) -> bool:
        found, default = getattr(run.trainer.model_wrapped, attribute), getattr(base.trainer.model_wrapped, attribute)
        return found != default and same(run.after, base.after)

    return shows(name, value, f"`{attribute}` of DDP, at the same steps", observable)


def level(bench: Bench, **settings: Any) -> bool:
    """Whether the second process's loggers have a level of their own."""
    before = transformers.logging.get_verbosity()
    try:
        process = bench.run(**settings).trainer.args.process_index
        return (
            transformers.logging.get_verbosity()
            == (transformers.logging.CRITICAL, transformers.logging.ERROR)[process]
        )
    finally:
        transformers.logging.set_verbosity(before)


def has_the_backend(bench: Bench, **settings: Any) -> bool:
    bench.run(**settings)
    return dist.get_backend() == settings["ddp_backend"]


def waits(bench: Bench, **settings: Any) -> bool:
    """To be run first: the processes find each other once."""
    bench.run(**settings)
    found = _get_default_group()._get_backend(bench.base().trainer.args.device).options._timeout
    return found == timedelta(seconds=settings["ddp_timeout"])


def saves_everywhere(bench: Bench, **settings: Any) -> bool:
    saving = {"save_strategy": "steps", "save_steps": 2}
    run, base = bench.run(**saving | settings), bench.base(**saving)
    only_here = base.has("model.safetensors") == (base.trainer.args.process_index == 0)
    whole = last_whole_checkpoint(run.folder) is not None
    return only_here and whole and run.has("model.safetensors") and run.has("ledger.jsonl")


ON_TWO_PROCESSES = [
    refused("average_tokens_across_devices", False),
    refused("eval_use_gather_object", True),
    refused("accelerator_config", {"even_batches": False}),
    shows(
        "accelerator_config",
        {"split_batches": True},
        "each process gets half a batch",
        lambda run, _: run.forget_rows[0] == 2,
        per_device_train_batch_size=4,
    ),
    wrapper("ddp_find_unused_parameters", False, "find_unused_parameters"),
    wrapper("ddp_bucket_cap_mb", 1, "bucket_bytes_cap"),
    wrapper("ddp_broadcast_buffers", False, "broadcast_buffers"),
    wrapper("ddp_static_graph", True, "static_graph"),
    special("ddp_backend", "gloo", "the processes' own", has_the_backend),
    special("log_level_replica", "error", "the level of the second process's loggers", level, log_level="critical"),
    refused("fsdp", "full_shard"),
]

ON_TWO_NODES = [
    special("ddp_timeout", 60, "the timeout of the processes' group", waits, use_cpu=False),
    special(
        "log_on_each_node",
        False,
        "the second node's loggers have the level of a replica",
        level,
        log_level="critical",
        log_level_replica="error",
    ),
    special("save_on_each_node", True, "both nodes have the result and a whole checkpoint", saves_everywhere),
]
