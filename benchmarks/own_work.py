"""
What R2F's own work takes on a CPU, part by part, in this state of the code and in an earlier one.

    python benchmarks/own_work.py [--revision 673b425] [--dtype bfloat16]

Own work is all that a step does after the backward pass. Here it gets gradients that were made up, so that nothing
else is timed: on the modules of a fifth of SmolLM2-135M (6 of 30 layers), with 256 directions to protect. `--revision`
is a commit of this repository. Its code and today's take turns, in processes of their own. Milliseconds are those of
the processor, on one thread: other work on the machine hardly changes them. The table has medians over all steps, and
the medians of ratios between turns that follow each other.

Writes outputs/own_work.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from r2f_hf import R2FStep
from r2f_hf.report import print_table
from r2f_hf.runs.files import write_json
from shared.contenders import Contender, load


ROOT = Path(__file__).parents[1]
WARM_UP = 2
# Directions of a gradient that was made up, each half as strong as the one before.
DIRECTIONS = 12


def make_gradients(r2f: R2FStep, generator: torch.Generator) -> None:
    """Give the pairs the gradients that a gradient of low rank would leave in them."""
    strengths = 2.0 ** -torch.arange(DIRECTIONS)
    for probe in r2f.modules.values():
        scaling = probe.layer.scaling[probe.adapter]
        left = torch.randn(len(probe.B), DIRECTIONS, generator=generator) * strengths
        right = torch.randn(DIRECTIONS, probe.A.shape[1], generator=generator)
        probe.B.grad = scaling * (left @ (right @ probe.A.data.T))
        probe.A.grad = scaling * ((probe.B.data.T @ left) @ right)


def measure(dtype: str, steps: int) -> dict[str, list[float]]:
    """Milliseconds of each step, and of its parts."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    contender = Contender("r2f", load("smollm2-fifth", dtype, "cpu"))
    generator = torch.Generator().manual_seed(1)
    taken: dict[str, list[float]] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        begin = time.process_time()
        yield
        taken.setdefault(name.removeprefix("r2f/"), []).append(1e3 * (time.process_time() - begin))

    with patch("r2f_hf.step.record_function", timed):
        for _ in range(steps + WARM_UP):
            make_gradients(contender.r2f, generator)
            with timed("all"):
                contender.r2f.step(lr=1e-3)
    return {name: times[-steps:] for name, times in taken.items()}


def in_a_process(source: Path, dtype: str, steps: int) -> dict[str, list[float]]:
    """[`measure`] with the package of a folder."""
    command = [sys.executable, __file__, "--worker", "--dtype", dtype, "--steps", str(steps)]
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--revision", help="the commit to compare with")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="steps per turn")
    parser.add_argument("--output", type=Path, default=Path("outputs/own_work.json"))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(options.dtype, options.steps)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        sources = {"now": ROOT / "src"}
        if options.revision:
            archive = subprocess.run(
                ["git", "archive", options.revision, "src"], cwd=ROOT, check=True, capture_output=True
            )
            subprocess.run(["tar", "x", "-C", scratch], input=archive.stdout, check=True)
            sources = {options.revision: Path(scratch) / "src"} | sources
        turns: dict[str, list[dict[str, list[float]]]] = {name: [] for name in sources}
        for _ in range(options.turns):
            for name, source in sources.items():
                turns[name].append(in_a_process(source, options.dtype, options.steps))
    rows = {
        part: {name: float(np.median([turn[part] for turn in of])) for name, of in turns.items()}
        for part in turns["now"][0]
    }
    if options.revision:
        for part, row in rows.items():
            pairs = zip(turns["now"], turns[options.revision], strict=True)
            row["ratio"] = float(np.median([np.median(one[part]) / np.median(two[part]) for one, two in pairs]))
    write_json(options.output, rows)
    print_table(f"Milliseconds of R2F's own work, {options.dtype}", rows, list(rows["all"]))
    print(f"The report is {options.output}.")


if __name__ == "__main__":
    main()
