"""A run of a few steps on however many processes there are, for test_distributed.py: OUTPUT_DIR GLOBAL_BATCH_SIZE."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import PartialState
from conftest import build_model, build_tokenizer, rows, weights

from r2f_hf import R2FConfig, R2FTrainer


def run(folder: Path, batch_size: int) -> None:
    """Unlearn, then resume in the middle of the second epoch; leave each process' weights and metrics in `folder`."""
    state = PartialState(cpu=True)
    results = []
    for checkpoint in (None, str(folder / "checkpoint-3")):
        model = build_model()
        args = R2FConfig(
            str(folder),
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            max_steps=6,
            save_strategy="steps",
            save_steps=3,
            per_device_train_batch_size=batch_size // state.num_processes,
            learning_rate=0.1,
            rank=8,
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
        trainer = R2FTrainer(model, args, **data)
        # As the command does. accelerate then takes the model for one that has been prepared for training too.
        trainer.evaluate()
        trainer.train(resume_from_checkpoint=checkpoint)
        logs = [logs for logs in trainer.state.log_history if "loss" in logs]
        results.append({"weights": weights(model), "logs": logs, "metrics": trainer.evaluate()})
    torch.save(results, folder / f"process{state.process_index}.pt")


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]))
    # A process that leaves while another still talks to it can take it down.
    PartialState().destroy_process_group()
