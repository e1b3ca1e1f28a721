"""Objectives with references, second answers or a state: several processes give what one gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import build_model, changed, distance, process_environment, weights
from distributed.objectives_run import run


SCRIPT = Path(__file__).with_name("objectives_run.py")
GLOBAL_BATCH_SIZE = 4


@pytest.mark.parametrize("flags", [[], ["--sharded"]], ids=["whole", "sharded"])
def test_processes_give_what_one_process_gives(flags: list[str], tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    together = tmp_path / "together"
    build_model().save_pretrained(together / "base")
    command = [*torchrun, str(SCRIPT), str(together), str(GLOBAL_BATCH_SIZE), *flags]
    done = subprocess.run(command, env=process_environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    alone = run(tmp_path, GLOBAL_BATCH_SIZE)
    first, second = (torch.load(together / f"process{rank}.pt") for rank in range(2))
    for name, one in alone.items():
        two = first[name]
        assert not changed(two["weights"], second[name]["weights"]), name
        assert two["factor"] == second[name]["factor"] == pytest.approx(one["factor"], rel=1e-4)
        moved = distance(weights(build_model()), one["weights"])
        assert distance(one["weights"], two["weights"]) < 1e-3 * moved, name
        for logs, other in zip(one["logs"], two["logs"], strict=True):
            for loss in ("loss", "forget_loss", "retain_loss"):
                assert other[loss] == pytest.approx(logs[loss], rel=1e-3, abs=1e-5), name
