"""Real processes: their weights are equal bit for bit, and agree with a single process on the same global batch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build_model, changed, distance, process_environment, weights
from distributed.processes_run import RANK, run
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from r2f_hf.runs.ledger import read_ledger
from r2f_hf.runs.weights import weights_hash


SCRIPT = Path(__file__).with_name("processes_run.py")
GLOBAL_BATCH_SIZE = 4


def launch(folder: Path, count: int, kind: str, *flags: str) -> list[list[dict[str, Any]]]:
    """What each process found: in a whole run, and in one resumed from its checkpoint."""
    build_model(kind).save_pretrained(folder / "base")
    # `accelerate launch --cpu` starts several processes only through MPI.
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    command = [*torchrun, str(SCRIPT), str(folder), str(GLOBAL_BATCH_SIZE), kind, *flags]
    environment = process_environment()
    # The first time, DeepSpeed compiles how its processes communicate on a CPU.
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"process{rank}.pt") for rank in range(count)]


@dataclass
class Case:
    """
    A number of processes on a model.

    Each holds all of the weights, or some rows of every weight, or what a stage of DeepSpeed's ZeRO leaves to it.
    """

    count: int
    kind: str
    sharded: bool = False
    zero: int = 0
    found: list[list[dict[str, Any]]] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.count} {self.kind}{' sharded' * self.sharded}{f' ZeRO-{self.zero}' * bool(self.zero)}"


CASES = [
    Case(2, "llama"),
    Case(4, "tied llama"),
    Case(2, "tied llama", sharded=True),
    Case(4, "llama", sharded=True),
    Case(2, "llama", zero=2),
    Case(2, "tied llama", zero=3),
    Case(4, "llama", zero=3),
]


# Two processes show the same in half of the time.
PARAMETERS = [pytest.param(case, marks=pytest.mark.slow if case.count > 2 else (), id=str(case)) for case in CASES]


@pytest.fixture(scope="module", params=PARAMETERS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A case that has been run."""
    case = request.param
    if case.zero:
        pytest.importorskip("deepspeed")
    flags = ["--sharded"] * case.sharded + ["--zero", str(case.zero)]
    case.found = launch(tmp_path_factory.mktemp("processes"), case.count, case.kind, *flags)
    return case


def test_all_processes_end_with_the_same_weights(case: Case) -> None:
    (first, _), *others = case.found
    assert len(changed(weights(build_model(case.kind)), first["weights"])) == 14
    for other, _ in others:
        assert not changed(first["weights"], other["weights"])


def test_a_resumed_run_equals_an_uninterrupted_one(case: Case) -> None:
    for whole, resumed in case.found:
        assert not changed(whole["weights"], resumed["weights"])


def test_the_result_is_that_of_one_process_with_the_same_global_batch(case: Case, tmp_path: Path) -> None:
    run(tmp_path, GLOBAL_BATCH_SIZE, case.kind)
    alone, _ = torch.load(tmp_path / "process0.pt")
    together = case.found[0][0]
    moved = distance(weights(build_model(case.kind)), alone["weights"])
    assert moved > 0.1
    assert distance(alone["weights"], together["weights"]) < 1e-4 * moved
    for one, two in zip(alone["logs"], together["logs"], strict=True):
        names = ["loss", "forget_loss", "retain_loss", "r2f/gradient_norm", "r2f/fidelity"]
        assert [two[name] for name in names] == pytest.approx([one[name] for name in names], rel=1e-3, abs=1e-5)
    for name in ("forget", "retain", "holdout"):
        key = f"eval_{name}_probability"
        assert together["metrics"][key] == pytest.approx(alone["metrics"][key], rel=1e-3)


def test_what_is_saved_is_the_whole_model(case: Case) -> None:
    found, _ = case.found[0]
    saved = AutoModelForCausalLM.from_pretrained(found["folder"])
    assert type(saved) is type(build_model(case.kind))
    assert not changed(found["weights"], weights(saved))
    by_hand = AutoModelForCausalLM.from_pretrained(Path(found["folder"]).with_name("mine"))
    assert not changed(found["weights"], weights(by_hand))
    entries = read_ledger(found["folder"])
    assert [entry["weights"] for entry in entries] == [
        {"before": weights_hash(build_model(case.kind).state_dict()), "after": weights_hash(saved.state_dict())}
    ]


def test_only_sketches_cross_the_network(case: Case) -> None:
    if case.sharded or case.zero:
        pytest.skip("needs DDP, whose bytes can be counted")
    found, _ = case.found[0]
    linear = [module for module in build_model(case.kind).modules() if isinstance(module, torch.nn.Linear)][:-1]
    numbers = sum(RANK * (module.in_features + module.out_features) for module in linear)
    # The gradients of the probes in fp32, no more and no less.
    assert found["sent"] == [4 * numbers] * 6


def test_an_adapter_beside_sharded_weights_takes_the_updates(tmp_path: Path) -> None:
    found = launch(tmp_path, 2, "tied llama", "--sharded", "--target", "adapter")
    for whole, resumed in found:
        assert not changed(weights(build_model("tied llama")), whole["weights"])
        assert not changed(whole["adapter"], resumed["adapter"])
        assert not changed(whole["adapter"], found[0][0]["adapter"])
        assert max(tensor.abs().max() for tensor in whole["adapter"].values()) > 0
    assert not changed(load_file(tmp_path / "model" / "adapter_model.safetensors"), found[0][0]["adapter"])
