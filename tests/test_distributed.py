"""Real processes: they agree bit for bit, and with one process that takes the same global batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build_model, changed, distance, weights
from distributed_run import RANK, run
from transformers import AutoModelForCausalLM

from r2f_hf.ledger import read_ledger
from r2f_hf.saving import weights_hash


SCRIPT = Path(__file__).with_name("distributed_run.py")
GLOBAL_BATCH_SIZE = 4


@pytest.fixture(scope="module", params=[(2, False), (4, False), (2, True), (4, True)])
def processes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """What each process found, with all weights or its share of them: in a whole run, and in a resumed one."""
    count, sharded = request.param
    folder = tmp_path_factory.mktemp("processes")
    # `accelerate launch --cpu` starts several processes through MPI alone.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    command = [*launch, str(SCRIPT), str(folder), str(GLOBAL_BATCH_SIZE)]
    if sharded:
        build_model().save_pretrained(folder / "base")
        command.append(str(folder / "base"))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"process{rank}.pt") for rank in range(count)]


def test_all_processes_end_with_the_same_weights(processes: list[list[dict[str, Any]]]) -> None:
    (first, _), *others = processes
    assert len(changed(weights(build_model()), first["weights"])) == 14
    for other, _ in others:
        assert not changed(first["weights"], other["weights"])


def test_a_resumed_run_equals_an_uninterrupted_one(processes: list[list[dict[str, Any]]]) -> None:
    for whole, resumed in processes:
        assert not changed(whole["weights"], resumed["weights"])


def test_the_result_is_that_of_one_process_with_the_same_global_batch(
    processes: list[list[dict[str, Any]]], tmp_path: Path
) -> None:
    run(tmp_path, GLOBAL_BATCH_SIZE)
    alone, _ = torch.load(tmp_path / "process0.pt")
    together = processes[0][0]
    moved = distance(weights(build_model()), alone["weights"])
    assert moved > 0.1
    assert distance(alone["weights"], together["weights"]) < 1e-4 * moved
    for one, two in zip(alone["logs"], together["logs"], strict=True):
        names = ["loss", "forget_loss", "retain_loss", "r2f/gradient_norm", "r2f/fidelity"]
        assert [two[name] for name in names] == pytest.approx([one[name] for name in names], rel=1e-3, abs=1e-5)
    for name in ("forget", "retain", "holdout"):
        key = f"eval_{name}_probability"
        assert together["metrics"][key] == pytest.approx(alone["metrics"][key], rel=1e-3)


def test_what_is_saved_is_the_whole_model(processes: list[list[dict[str, Any]]]) -> None:
    found, _ = processes[0]
    saved = AutoModelForCausalLM.from_pretrained(found["folder"])
    assert type(saved) is type(build_model())
    assert not changed(found["weights"], weights(saved))
    entries = read_ledger(found["folder"])
    assert [entry["weights"] for entry in entries] == [
        {"before": weights_hash(build_model().state_dict()), "after": weights_hash(saved.state_dict())}
    ]


def test_only_sketches_cross_the_network(processes: list[list[dict[str, Any]]]) -> None:
    found, _ = processes[0]
    if not any(found["sent"]):
        pytest.skip("of sharded weights FSDP2 leaves the replicated probes to Trainer, which sends each gradient once")
    linear = [module for module in build_model().modules() if isinstance(module, torch.nn.Linear)][:-1]
    numbers = sum(RANK * (module.in_features + module.out_features) for module in linear)
    # No more than the probes' gradients, in fp32, and no less.
    assert found["sent"] == [4 * numbers] * 6
