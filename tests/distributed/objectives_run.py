"""A few steps with several objectives on any number of processes, for test_objectives.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from conftest import build_tokenizer, rows
from distributed.processes_run import load

from r2f_hf import R2FConfig, R2FTrainer
from r2f_hf.distributed import gather
from r2f_hf.runs.weights import full_state_dict


SETTINGS: dict[str, dict[str, Any]] = {
    "bs_s": {"forget_objective_kwargs": {"num_answers": 2, "max_new_tokens": 6}},
    "pdu": {"forget_objective_kwargs": {"retain_limit": 4.0}},
    "undial": {"retain_objective": "jensen_shannon"},
    "adaptive_rmu": {"retain_objective": "hidden_states"},
    "idk": {"forget_objective_kwargs": {"answers": "refusal"}},
    "margin": {"simulated_relearning": 0.3},
}


def run(folder: Path, batch_size: int, sharded: bool = False) -> dict[str, dict[str, Any]]:
    """Unlearn with each objective. Each process leaves what it found in `folder`."""
    state, found = PartialState(cpu=True), {}
    for name, settings in SETTINGS.items():
        model = load("llama", folder, sharded, zero=0, processes=state.num_processes)
        args = R2FConfig(
            str(folder / name),
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            max_steps=3,
            save_strategy="no",
            per_device_train_batch_size=batch_size // state.num_processes,
            per_device_eval_batch_size=4,
            learning_rate=0.1,
            rank=8,
            forget_objective=name,
            stop_check_steps=100,
            **settings,
        )
        # Not a multiple of the global batch size: the last batch of an epoch does not fill all processes.
        forget = [row | {"refusal": "Cleo lives. " * (1 + index % 3)} for index, row in enumerate(rows("Orla", 5))]
        data = {"retain_dataset": rows("Bram", 10), "holdout_dataset": rows("Cleo", 5)}
        trainer = R2FTrainer(model, args, forget, **data, processing_class=build_tokenizer())
        trainer.train()
        logs = [logs for logs in trainer.state.log_history if "loss" in logs]
        factor = trainer.forget_objective.retain_factor
        found[name] = {"weights": gather(full_state_dict(trainer.model)), "logs": logs, "factor": factor}
    torch.save(found, folder / f"process{state.process_index}.pt")
    return found


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]), "--sharded" in sys.argv)
