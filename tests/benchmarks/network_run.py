"""Three steps on any number of processes, in which all that crosses the network is counted, for test_network.py."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from accelerate import PartialState
from conftest import build_tokenizer, rows
from distributed.processes_run import use_zero
from transformers import AutoModelForCausalLM, TrainerCallback

from r2f_hf import R2FConfig, R2FTrainer
from r2f_hf.models.loading import from_pretrained
from r2f_hf.training.forget_retain_trainer import ForgetRetainTrainer
from shared.network import Carried


RANK = 8


class CountSteps(TrainerCallback):
    """Counts what the collectives of each step carry."""

    def __init__(self) -> None:
        self.steps: list[Counter[str]] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.counting = Carried()
        self.counting.__enter__()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.counting.__exit__(None, None, None)
        self.steps.append(self.counting.bytes)


def main(folder: Path, sharding: str, method: str) -> None:
    """Train the model in `folder`, and leave each step's bytes there."""
    zero = int(sharding[-1]) if sharding.startswith("zero") else 0
    if zero:
        # On so small a model ZeRO-3 would leave weights whole between two uses.
        shortcuts = ("param_persistence_threshold", "max_reuse_distance", "prefetch_bucket_size")
        use_zero(folder, zero, **{f"stage3_{name}": 0 for name in shortcuts})
    # If accelerate were told that it is on a CPU, it would leave DeepSpeed out.
    state = PartialState(cpu=not zero, backend="gloo" if zero else None)
    args = R2FConfig(
        str(folder / "run"),
        use_cpu=not zero,
        ddp_backend="gloo" if zero else None,
        report_to="none",
        disable_tqdm=True,
        max_steps=3,
        per_device_train_batch_size=2,
        rank=RANK,
        learning_rate=0.1,
        save_strategy="no",
    )
    if sharding == "fsdp2":
        from transformers.distributed import DistributedConfig

        sharded = DistributedConfig(fsdp_size=state.num_processes)
        model = AutoModelForCausalLM.from_pretrained(folder / "base", distributed_config=sharded)
    else:
        # DeepSpeed's configuration is there by now, so that ZeRO-3 loads pieces.
        model = from_pretrained(str(folder / "base"))
    data = {
        "forget_dataset": rows("Orla", 8),
        "retain_dataset": rows("Bram", 8),
        "processing_class": build_tokenizer(),
    }
    count = CountSteps()
    trainer = (R2FTrainer if method == "r2f" else ForgetRetainTrainer)(model, args, **data, callbacks=[count])
    trainer.train()
    if state.is_main_process:
        (folder / "steps.json").write_text(json.dumps(count.steps))
    trainer.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
