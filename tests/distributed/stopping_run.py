"""A run that a holdout set ends, on processes whose scores differ, for test_stopping.py."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from conftest import build_model, build_tokenizer, rows
from transformers import TrainerCallback

from r2f_hf import R2FConfig, R2FTrainer


class Differing(R2FTrainer):
    """By any process but the first, the run may not end: neither by what it scores, nor by what it compares with."""

    def completion_probabilities(self, examples: Sequence[dict[str, Any]]) -> np.ndarray:
        found = super().completion_probabilities(examples)
        if not self.args.process_index:
            return found
        return np.full_like(found, 0.999 if examples == self.splits.originals else 1e-9)


class OtherReferences(TrainerCallback):
    """Any process but the first believes that the holdout set was unlikely, and the retain set likely."""

    def __init__(self, trainer: R2FTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: R2FConfig, *others: Any, **kwargs: Any) -> None:
        tensors = self.trainer.references.tensors
        if args.process_index:
            tensors["holdout_log_probs"], tensors["retain_log_probs"] = (
                factor * tensors[f"{name}_log_probs"] for name, factor in (("holdout", 50), ("retain", 0))
            )


def main(folder: Path) -> None:
    state = PartialState(cpu=True)
    found = []
    for settings in ({}, {"forget_objective": "ignorance", "forget_objective_kwargs": {"lift_after": 0}}):
        args = R2FConfig(
            str(folder / "run"),
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            max_steps=3,
            save_strategy="no",
            per_device_train_batch_size=2,
            rank=8,
            stop_check_steps=1,
            # Nothing is forgotten, so the retain set is kept, and the forget set stays like the holdout set.
            learning_rate=1e-6,
            **settings,
        )
        data = {"retain_dataset": rows("Bram", 10), "holdout_dataset": rows("Cleo", 5)}
        trainer = Differing(build_model(), args, rows("Orla", 5), **data, processing_class=build_tokenizer())
        trainer.add_callback(OtherReferences(trainer))
        trainer.train()
        factor = getattr(trainer.forget_objective, "level_factor", 1.0)
        found.append({"step": trainer.state.global_step, "reason": trainer.stop_reason, "factor": factor})
    (folder / f"process{state.process_index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
