"""
What is lost when things go wrong: killed processes, damaged checkpoints, full disks, mistaken inputs.

    python benchmarks/faults.py [--quick]

Every fault is real: processes get SIGKILL, bytes are changed or cut off, and a small disk is mounted and filled. The
disk needs root; the report says so if it could not be mounted. The runs are those of shared/faults_worker.py: a model
of 0.9 million parameters, in fp32 on the CPU, with one checkpoint per step. Writes outputs/faults.json:

    kills              runs that were killed at a random moment, every second one meant to be inside a save. Each is
                       started again with the same command. Counted are those that went on from a checkpoint, took only
                       the steps that were lacking, and ended with the very bits of a run that was not killed
    corruptions        checkpoints with one byte changed or the end cut off: how many were detected, and how many were
                       loaded as if nothing were wrong
    processes          1, 2 and 4 processes on one global batch, with DDP, with FSDP2 and, where DeepSpeed is
                       installed, with ZeRO-3: the largest relative difference of the weights' change, and of the
                       metrics
    bad_inputs         mistakes, and how many were refused before any weight changed
    disk_full          whether the checkpoint before a full disk was whole, and whether the run then ended with the
                       same bits
    dead_rank_seconds  from the death of one of two processes to the end of the other
    lost               runs that did not come to the same end (on several processes: to 1e-4), and damaged checkpoints
                       that were loaded
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.progress import track
from safetensors.torch import load_file

from r2f_hf.report import print_table
from r2f_hf.runs.checkpoints import CHECKSUMS_FILE, last_whole_checkpoint
from r2f_hf.runs.files import write_json
from shared.faults_worker import train_model
from shared.mistakes import try_mistakes


WORKER = Path(__file__).parent / "shared" / "faults_worker.py"
STEPS = 12

# Several processes may differ from one by this part of the weights' change, as docs/distributed.md says.
LARGEST_DIFFERENCE = 1e-4


def start(folder: Path, processes: int = 1, steps: int = STEPS, kind: str = "ddp") -> subprocess.Popen:
    """Start a run in a folder. What it prints goes into a log next to the folder."""
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}
    command = [*launch, str(WORKER), str(folder), "--steps", str(steps), "--kind", kind]
    with open(folder.with_suffix(".log"), "a") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def finish(folder: Path, processes: int = 1, kind: str = "ddp") -> dict:
    """Run to the end, from the latest whole checkpoint in the folder."""
    code = start(folder, processes, kind=kind).wait()
    if code:
        raise SystemExit(f"A run failed:\n{folder.with_suffix('.log').read_text()[-3000:]}")
    return json.loads((folder / "result.json").read_text())


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> bool:
    """Wait for a condition. Returns whether it became true before the process ended."""
    while process.poll() is None:
        if condition():
            return True
        time.sleep(0.001)
    return False


def unfinished(folder: Path) -> list[Path]:
    """The checkpoints that are not whole yet."""
    return [path for path in folder.glob("checkpoint-*") if not (path / CHECKSUMS_FILE).exists()]


def last_step(folder: Path) -> int:
    """The step of the latest whole checkpoint, or 0."""
    latest = last_whole_checkpoint(folder)
    return 0 if latest is None else int(latest.name.split("-")[1])


def kill(folder: Path, draw: random.Random, inside: bool, seconds: float) -> bool:
    """Start a run and kill it, at a random moment or when a certain checkpoint appears. Returns whether in a save."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        process = start(folder)
        wait_for((folder / "rank0.pid").exists, process)
        if inside:
            step = draw.randrange(1, STEPS + 1)
            wait_for((folder / f"checkpoint-{step}").exists, process)
            time.sleep(draw.uniform(0, 0.01))
        else:
            time.sleep(draw.uniform(0, seconds))
        process.send_signal(signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            return bool(unfinished(folder))
    raise SystemExit(f"No run lasts until it is killed:\n{folder.with_suffix('.log').read_text()[-3000:]}")


def try_kills(root: Path, count: int, reference: dict, seconds: float) -> dict[str, int]:
    def attempt(index: int) -> dict[str, bool]:
        folder = root / f"kill{index}"
        # Every second one is meant to be inside a save, as some will come a moment too late.
        in_save = kill(folder, random.Random(index), index % 2 == 0, seconds)
        done = last_step(folder)
        resumed = finish(folder)
        shutil.rmtree(folder)
        return {
            "inside_a_save": in_save,
            "continued_from_a_checkpoint": done > 0,
            "took_the_lacking_steps": resumed["steps"] == STEPS - done,
            "resumed_bit_identical": resumed["result"] == reference,
        }

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        attempts = list(track(pool.map(attempt, range(count)), "Killing runs", total=count))
    return {"tried": count} | {name: sum(outcome[name] for outcome in attempts) for name in attempts[0]}


def try_corruptions(folder: Path, count: int) -> dict[str, int]:
    last, before = folder / f"checkpoint-{STEPS}", folder / f"checkpoint-{STEPS - 1}"
    files = sorted(path for path in last.rglob("*") if path.is_file())
    draw, detected = random.Random(0), 0
    for _ in track(range(count), "Damaging checkpoints"):
        path = draw.choice(files)
        content = path.read_bytes()
        place = draw.randrange(len(content))
        if draw.random() < 0.5:
            path.write_bytes(content[:place])
        else:
            path.write_bytes(content[:place] + bytes([content[place] ^ draw.randrange(1, 256)]) + content[place + 1 :])
        detected += last_whole_checkpoint(folder) == before
        path.write_bytes(content)
    assert last_whole_checkpoint(folder) == last
    return {"tried": count, "detected": detected, "loaded_silently": count - detected}


def try_processes(root: Path, alone: Path) -> dict[str, float]:
    def weights(folder: Path) -> torch.Tensor:
        tensors = load_file(folder / "model.safetensors")
        return torch.cat([tensors[name].flatten().double() for name in sorted(tensors)])

    before, one = weights(root / "base"), weights(alone)
    metrics = json.loads((alone / "result.json").read_text())["result"]["metrics"]
    kinds = ["ddp", "fsdp2", *(["zero3"] if find_spec("deepspeed") else [])]
    of_weights: dict[str, list[float]] = {kind: [] for kind in kinds}
    of_metrics = []
    cases = [(kind, count) for kind in kinds for count in (2, 4)]
    for kind, count in track(cases, "Running on several processes"):
        folder = root / f"{kind}_{count}"
        result = finish(folder, count, kind)["result"]["metrics"]
        of_weights[kind].append(((weights(folder) - one).norm() / (one - before).norm()).item())
        of_metrics += [abs(result[name] - metrics[name]) / metrics[name] for name in metrics]
    return {
        **{f"relative_difference_of_weights_{kind}": max(found) for kind, found in of_weights.items()},
        "relative_difference_of_metrics": max(of_metrics),
        "tried": len(cases),
        "too_different": sum(difference > LARGEST_DIFFERENCE for found in of_weights.values() for difference in found),
    }


def try_full_disk(root: Path, reference: dict) -> dict[str, bool | str]:
    disk = root / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", disk], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        return {"tried": False, "reason": mounted.stderr.strip()}
    try:
        (disk / "base").symlink_to(root / "base")
        folder = disk / "run"
        code = start(folder).wait()
        # The log is on the full disk too, and may be cut off: only the folder itself says what there is.
        done = last_step(folder)
        subprocess.run(["mount", "-o", "remount,size=200m", disk], check=True)
        ended = code != 0 and not (folder / "result.json").exists()
        resumed = finish(folder)
        return {
            "tried": True,
            "run_ended_with_an_error": ended,
            "whole_checkpoints": done,
            "old_checkpoint_intact": done > 0 and resumed["steps"] == STEPS - done,
            "resumed_bit_identical": resumed["result"] == reference,
        }
    finally:
        subprocess.run(["umount", disk], check=True)


def try_dead_rank(root: Path) -> dict[str, float | bool]:
    folder = root / "dead_rank"
    process = start(folder, processes=2, steps=100_000)
    wait_for((folder / "checkpoint-2").exists, process)
    pid = int((folder / "rank1.pid").read_text())
    begin = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    process.wait(timeout=600)
    seconds = time.monotonic() - begin
    log = folder.with_suffix(".log").read_text()
    return {
        "dead_rank_seconds": seconds,
        "dead_rank_named": re.search(rf"\b{pid}\b", log) is not None and "SIGKILL" in log,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer killed runs and damaged checkpoints")
    parser.add_argument("--output", type=Path, default=Path("outputs/faults.json"))
    options = parser.parse_args()
    kills, damages = (6, 200) if options.quick else (24, 1000)

    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        train_model(root / "base")
        process = start(root / "reference")
        wait_for((root / "reference" / "rank0.pid").exists, process)
        begin = time.monotonic()
        process.wait()
        seconds = time.monotonic() - begin
        reference = json.loads((root / "reference" / "result.json").read_text())["result"]
        report = {"kills": try_kills(root, kills, reference, seconds)}
        report["corruptions"] = try_corruptions(root / "reference", damages)
        report["processes"] = try_processes(root, root / "reference")
        report["bad_inputs"] = try_mistakes(root, root / "reference")
        report["disk_full"] = try_full_disk(root, reference)
        report |= try_dead_rank(root)
    lost = report["kills"]["tried"] - report["kills"]["resumed_bit_identical"]
    lost += report["corruptions"]["loaded_silently"]
    lost += report["kills"]["tried"] - report["kills"]["took_the_lacking_steps"]
    lost += report["processes"]["too_different"]
    lost += report["disk_full"]["tried"] and not report["disk_full"]["resumed_bit_identical"]
    report["lost"] = lost
    write_json(options.output, report)
    table = {
        f"{fault}: {name}".replace("_", " "): {"found": str(value) if isinstance(value, bool | str) else value}
        for fault, outcome in report.items()
        for name, value in (outcome if isinstance(outcome, dict) else {"": outcome}).items()
    }
    print_table("Faults", table, ["found"])
    print(f"The report is {options.output}.")


if __name__ == "__main__":
    main()
