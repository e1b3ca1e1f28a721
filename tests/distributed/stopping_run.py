"""A run that a holdout set ends, on processes whose scores differ, for test_stopping.py."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from conftest import build_model, build_tokenizer, rows

from r2f_hf import R2FConfig, R2FTrainer


class Differing(R2FTrainer):
    """Any process but the first sees the forget set far above the holdout set, and the retain set far below it."""

    def completion_probabilities(self, examples: Sequence[dict[str, Any]]) -> np.ndarray:
        found = super().completion_probabilities(examples)
        if not self.args.process_index:
            return found
        return np.full_like(found, 0.999 if examples is self.splits.originals else 1e-9)


def main(folder: Path) -> None:
    state = PartialState(cpu=True)
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
    )
    data = {"retain_dataset": rows("Bram", 10), "holdout_dataset": rows("Cleo", 5)}
    trainer = Differing(build_model(), args, rows("Orla", 5), **data, processing_class=build_tokenizer())
    trainer.train()
    (folder / f"process{state.process_index}.txt").write_text(f"{trainer.state.global_step}: {trainer.stop_reason}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
