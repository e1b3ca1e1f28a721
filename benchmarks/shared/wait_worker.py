"""
`r2f unlearn` with a clock, which wait.py starts.

    python benchmarks/shared/wait_worker.py START [FLAGS]

START is the time when the process was started, in seconds since the epoch. FLAGS are those of `r2f unlearn`. The
process ends with the first optimizer step, and prints the seconds of each part as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import pairwise
from typing import Any


# By the name of a part the time when it ended.
ends = {"start": float(sys.argv[1]), "Python": time.time()}

from transformers import TrainerCallback  # noqa: E402

from r2f_hf import R2FTrainer  # noqa: E402
from r2f_hf.cli import unlearn  # noqa: E402


ends["imports"] = time.time()


def clock(owner: Any, name: str, part: str) -> None:
    """End a part when a function returns. If it is called several times, its last call counts."""
    function = getattr(owner, name)

    def clocked(*args, **kwargs):
        result = function(*args, **kwargs)
        ends[part] = time.time()
        return result

    setattr(owner, name, clocked)


class FirstStep(TrainerCallback):
    """Times the first step, and ends the process after it."""

    def on_step_begin(self, *args, **kwargs) -> None:
        ends["optimizer, loaders"] = time.time()

    def on_pre_optimizer_step(self, *args, **kwargs) -> None:
        ends["step: forward, backward"] = time.time()

    def on_step_end(self, *args, **kwargs) -> None:
        ends["step: decode, write"] = time.time()
        seconds = {part: end - begin for (_, begin), (part, end) in pairwise(ends.items())}
        print(json.dumps(seconds))
        raise SystemExit


clock(unlearn, "load_rows", "recipe, rows")
clock(unlearn, "load_model", "model, tokenizer")
clock(R2FTrainer, "evaluate", "metrics before")
clock(R2FTrainer, "_begin", "hash, copy of the original")
clock(R2FTrainer, "_compute_references", "references")
run = unlearn.prepare(sys.argv[2:])
ends["checks, encoding, probes"] = time.time()
run.args[0].add_callback(FirstStep())
run()
