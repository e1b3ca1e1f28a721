"""
How long a user waits: for `r2f --help`, for the imports, and for the first step of `r2f unlearn`.

    python benchmarks/wait.py [--repeats 5] [--quick]

Everything runs in new processes, in turns. The imports are compared with those of a user of Trainer and PEFT. The
ratios are those of the time that processors worked, which other processes on the machine change little.

`r2f unlearn` runs on SmolLM2-135M in fp32 and 16 invented rows, 4 of them to forget. The first step takes all of them.
Its time is split into parts, from the start of the process to the end of the step. `--quick` runs everything once.
Writes outputs/wait.json with the medians of the seconds, of the imports' ratios, and of each part's share.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from rich.progress import track

from r2f_hf.data.fictitious import fictitious_dataset
from r2f_hf.report import print_table
from r2f_hf.runs.files import write_json
from shared.pypi_models import smollm2_folder


# By name a command, and the name of the command that it is compared with.
COMMANDS = {
    "r2f --help": (["-m", "r2f_hf.cli", "--help"], None),
    "import transformers": (["-c", "import transformers"], None),
    "import r2f_hf": (["-c", "import r2f_hf"], "import transformers"),
    "Trainer, peft, accelerate": (
        ["-c", "from transformers import Trainer, TrainingArguments; import peft, accelerate"],
        None,
    ),
    "R2FTrainer, R2FConfig": (["-c", "from r2f_hf import R2FTrainer, R2FConfig"], "Trainer, peft, accelerate"),
}
ROWS = {"forget": 4, "retain": 12}


def seconds_of(arguments: list[str]) -> tuple[float, float]:
    """How long a Python process takes, from its start to its end, and how long processors worked on it."""
    start, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - start, os.times()
    return seconds, sum(after[2:4]) - sum(before[2:4])


def first_step(folder: Path) -> dict[str, float]:
    """Seconds of the parts of `r2f unlearn`, up to the end of the first step."""
    flags = ["--model_name_or_path", str(smollm2_folder()), "--output_dir", str(folder / "unlearned")]
    flags += ["--per_device_train_batch_size", str(ROWS["forget"]), "--max_steps", "1", "--report_to", "none"]
    for name in ROWS:
        flags += [f"--{name}_data", str(folder / f"{name}.jsonl")]
    worker = Path(__file__).parent / "shared" / "wait_worker.py"
    command = [
        sys.executable,
        str(worker),
        str(time.time()),
        *flags,
        "--overwrite_output_dir",
        "--disable_tqdm",
        "true",
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="run everything once")
    parser.add_argument("--output", type=Path, default=Path("outputs/wait.json"))
    options = parser.parse_args()

    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    parts = []
    with tempfile.TemporaryDirectory() as scratch:
        folder, world = Path(scratch), fictitious_dataset(0)
        for name, count in ROWS.items():
            lines = [json.dumps({key: row[key] for key in ("question", "answer")}) for row in world[name]]
            (folder / f"{name}.jsonl").write_text("\n".join(lines[:count]))
        for _ in track(range(1 if options.quick else options.repeats), "Waiting"):
            for name, (arguments, _) in COMMANDS.items():
                seconds[name].append(seconds_of(arguments))
            parts.append(first_step(folder))

    ratios = {
        name: median(ours / theirs for (_, ours), (_, theirs) in zip(seconds[name], seconds[peer], strict=True))
        for name, (_, peer) in COMMANDS.items()
        if peer is not None
    }
    table = {
        name: dict(zip(("seconds", "processor"), map(median, zip(*times, strict=True)), strict=True))
        | ({"ratio to the line above": ratios[name]} if name in ratios else {})
        for name, times in seconds.items()
    }
    columns = ("seconds", "processor", "ratio to the line above")
    print_table("From the start of a process to its end", table, columns)
    split = {
        part: {
            "seconds": median(run[part] for run in parts),
            "share": median(run[part] / sum(run.values()) for run in parts),
        }
        for part in parts[0]
    }
    split["all"] = {"seconds": median(sum(run.values()) for run in parts)}
    print_table("r2f unlearn, to the end of the first step", split, ("seconds", "share"))
    write_json(options.output, {"commands": table, "first_step": split, "runs": seconds, "parts": parts})
    print(f"The report is {options.output}.")


if __name__ == "__main__":
    main()
