"""What is computed about the network agrees with what real processes send."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from benchmarks.network_run import RANK
from conftest import build_model, process_environment

from shared.network import Shapes, carried, sent


SCRIPT = Path(__file__).with_name("network_run.py")

# What Trainer and accelerate tell each other per step: how many tokens there are, and the random state.
SMALL_TALK = 200


def run(folder: Path, processes: int, kind: str, sharding: str, method: str) -> list[Counter[str]]:
    """Bytes by kind of collective, for each step of the first process."""
    build_model(kind).save_pretrained(folder / "base")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [*torchrun, str(SCRIPT), str(folder), sharding, method]
    import shared

    environment = process_environment()
    environment["PYTHONPATH"] += f":{Path(shared.__path__[0]).parent}"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [Counter(step) for step in json.loads((folder / "steps.json").read_text())]


@pytest.mark.parametrize(
    ("processes", "kind", "sharding", "method"),
    [
        (2, "llama", "ddp", "r2f"),
        pytest.param(2, "llama", "ddp", "full", marks=pytest.mark.slow),
        (2, "tied llama", "fsdp2", "r2f"),
        pytest.param(4, "llama", "fsdp2", "r2f", marks=pytest.mark.slow),
        (2, "llama", "fsdp2", "full"),
        pytest.param(2, "llama", "zero2", "r2f", marks=pytest.mark.slow),
        pytest.param(2, "llama", "zero2", "full", marks=pytest.mark.slow),
        pytest.param(2, "llama", "zero3", "r2f", marks=pytest.mark.slow),
        pytest.param(2, "tied llama", "zero3", "r2f", marks=pytest.mark.slow),
        pytest.param(2, "llama", "zero3", "full", marks=pytest.mark.slow),
    ],
)
def test_processes_send_what_is_computed(
    processes: int, kind: str, sharding: str, method: str, tmp_path: Path
) -> None:
    if sharding.startswith("zero"):
        pytest.importorskip("deepspeed")
    steps = run(tmp_path, processes, kind, sharding, method)
    expected = carried(method, Shapes.of(build_model(kind)), RANK, sharding)
    assert len(steps) == 3
    # In its first step FSDP2 gathers a trained head twice, and ZeRO-3 learns in which order modules are used.
    for step in steps[1:]:
        if sharding == "zero3":
            # Its processes compare the numbers of their modules, until they have seen the same order twice.
            assert step.pop("broadcast", 0) < 2000
        for collective in step | expected:
            assert expected[collective] <= step[collective] <= expected[collective] + SMALL_TALK, collective


def test_a_ring_sends_each_byte_once_per_way() -> None:
    shapes = Shapes(linear=[(10, 20)], resharded=1000, kept=100, width=2)
    assert sent("r2f", shapes, 4, 1, "ddp") == sent("full", shapes, 4, 1, "fsdp2") == 0
    assert sent("floor", shapes, 4, 2, "ddp") == 0
    # Per process 15 of 16 parts, there and back.
    assert sent("r2f", shapes, 4, 16, "ddp") == 2 * 15 / 16 * (4 * 4 * 30)
    assert sent("exact", shapes, 4, 16, "ddp") == 2 * 15 / 16 * (2 * 200)
    assert sent("full", shapes, 4, 16, "ddp", micro_batches=8) == 2 * 15 / 16 * 2200
    gathered = 15 / 16 * (2 * 2000 + 200)
    assert sent("full", shapes, 4, 16, "fsdp2", 3) == 3 * (gathered + 15 / 16 * 2200)
    assert sent("lora", shapes, 4, 16, "fsdp2", 3) == 3 * gathered + 2 * 15 / 16 * (4 * 4 * 30)
    # ZeRO-2 adds up whole gradients for each part of a step, and R2F reads them by another all-reduce.
    pairs = 4 * 4 * 30
    assert sent("r2f", shapes, 4, 16, "zero2", 3) == 15 / 16 * (2 * 4 * pairs + pairs)
    assert sent("full", shapes, 4, 16, "zero2") == 15 / 16 * 3 * 2200
    # ZeRO-3 gathers pairs for two passes and two reads.
    assert sent("r2f", shapes, 4, 16, "zero3") == 15 / 16 * (2 * 2200 + 5 * pairs)
    assert sent("full", shapes, 4, 16, "zero3", 3) == 3 * 15 / 16 * 3 * 2200


def test_a_model_sends_what_its_parts_send() -> None:
    model = build_model()
    whole, parts = Shapes.of(model), Shapes.parts(model)
    for sharding in ("ddp", "zero2"):
        layer = [sent("r2f", parts[name], RANK, 4, sharding) for name in ("attention", "MLP")]
        assert 2 * sum(layer) == sent("r2f", whole, RANK, 4, sharding)
    # Norms make up the rest.
    layer = [sent("full", parts[name], RANK, 4, "fsdp2") for name in ("attention", "MLP")]
    ends = [sent("full", parts[name], RANK, 4, "fsdp2") for name in ("embeddings", "head")]
    norms = 4 * 32 * 3 / 4 * (4 * 3 + 2)
    assert 2 * sum(layer) + sum(ends) + norms == sent("full", whole, RANK, 4, "fsdp2")
