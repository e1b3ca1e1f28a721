"""A run of a few steps on any number of processes, for test_processes.py."""

from __future__ import annotations

import argparse
import json
import os
import weakref
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from conftest import build_model, build_tokenizer, rows
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, PreTrainedModel, TrainerCallback

from r2f_hf import R2FConfig, R2FTrainer
from r2f_hf.distributed import gather
from r2f_hf.models.loading import from_pretrained
from r2f_hf.runs.weights import full_state_dict
from r2f_hf.updates.targets import AdapterTarget


RANK = 8


class SentBytes(TrainerCallback):
    """Counts the bytes of gradients that DDP sends."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_train_begin(self, *args: Any, model: nn.Module, **kwargs: Any) -> None:
        # DDP compares the annotations, and does not understand those that are strings.
        def count(group, bucket):
            self.steps[-1] += bucket.buffer().nbytes
            return allreduce_hook(group, bucket)

        if isinstance(self.trainer.model_wrapped, DistributedDataParallel):
            self.trainer.model_wrapped.register_comm_hook(None, count)

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.steps.append(0)


def load(kind: str, folder: Path, sharded: bool, zero: int, processes: int) -> PreTrainedModel:
    """The model: whole on every process, or loaded from `base` in the folder with its rows sharded."""
    if zero:
        # The first time it is whole. Under ZeRO-3 it comes in pieces once there is a configuration.
        return from_pretrained(str(folder / "base"))
    if not sharded:
        return build_model(kind)
    from transformers.distributed import DistributedConfig

    sharding = DistributedConfig(fsdp_size=processes)
    return AutoModelForCausalLM.from_pretrained(folder / "base", distributed_config=sharding)


def use_zero(folder: str | Path, stage: int, **options: Any) -> None:
    """Ask for DeepSpeed, as `accelerate launch` does."""
    # Norms and some of the probes stay whole on every process between their uses. The rest does not.
    config = {"zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 300} | options}
    filled_in = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    config |= dict.fromkeys(filled_in, "auto")
    file = Path(folder) / "zero.json"
    file.write_text(json.dumps(config))
    os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)}


def run(
    folder: Path, batch_size: int, kind: str, sharded: bool = False, target: str = "weights", zero: int = 0
) -> R2FTrainer:
    """Unlearn, then resume in the middle of the second epoch. Each process leaves weights and metrics in `folder`."""
    if zero:
        use_zero(folder, zero)
    # If accelerate were told that it is on a CPU, it would leave DeepSpeed out.
    state = PartialState(cpu=not zero, backend="gloo" if zero else None)
    results = []
    for checkpoint in (None, str(folder / "checkpoint-3")):
        model = load(kind, folder, sharded, zero, state.num_processes)
        args = R2FConfig(
            str(folder),
            use_cpu=not zero,
            ddp_backend="gloo" if zero else None,
            report_to="none",
            disable_tqdm=True,
            max_steps=6,
            save_strategy="steps",
            save_steps=3,
            per_device_train_batch_size=batch_size // state.num_processes,
            learning_rate=0.1,
            rank=RANK,
            update_target=target,
            retain_objective="kl",
            num_views=2,
            views_column="paraphrased_question",
            stop_check_steps=100,
            # An evaluation before the last batch of an epoch.
            eval_strategy="steps",
            eval_steps=1,
        )
        data = {
            # Not a multiple of the global batch size: the last batch of an epoch does not fill all processes.
            "forget_dataset": rows("Orla", 7),
            "retain_dataset": rows("Bram", 10),
            "holdout_dataset": rows("Cleo", 5),
            "processing_class": build_tokenizer(),
        }
        sent = SentBytes()
        trainer = R2FTrainer(model, args, **data, callbacks=[sent])
        sent.trainer = trainer
        if checkpoint is None:
            # The command evaluates first too. accelerate then takes the model for one that is prepared for training.
            trainer.evaluate()
        trainer.train(resume_from_checkpoint=checkpoint)
        logs = [logs for logs in trainer.state.log_history if "loss" in logs]
        metrics = trainer.evaluate()
        trainer.save_model(str(folder / "model"))
        if target == "weights":
            # By the variable that was handed in. Where weights are sharded, all processes have to call it.
            model.save_pretrained(folder / "mine", is_main_process=trainer.is_world_process_zero())
        found = {"weights": gather(full_state_dict(trainer.model)), "logs": logs, "metrics": metrics}
        if target == "adapter":
            found["adapter"] = AdapterTarget().state(trainer.model)
        results.append(found | {"sent": sent.steps, "folder": str(folder / "model")})
    torch.save(results, folder / f"process{state.process_index}.pt")
    return trainer


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("batch_size", type=int)
    parser.add_argument("kind")
    parser.add_argument("--sharded", action="store_true")
    parser.add_argument("--target", default="weights")
    parser.add_argument("--zero", type=int, default=0)
    trainer = run(**vars(parser.parse_args()))
    wrapper = weakref.ref(trainer.model_wrapped)
    ddp = isinstance(trainer.model_wrapped, DistributedDataParallel)
    trainer.end_training()
    # Otherwise a process could hang now and then.
    assert not ddp or wrapper() is None
