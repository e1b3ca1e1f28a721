"""Each process writes its own part of a weight that ZeRO-3 has partitioned. Together they write the whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import process_environment


SCRIPT = Path(__file__).with_name("sharding_run.py")
PROCESSES = 3


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, dict[str, Any]]]:
    """What each process holds in the end."""
    pytest.importorskip("deepspeed")
    folder = tmp_path_factory.mktemp("processes")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(PROCESSES)]
    environment = process_environment()
    done = subprocess.run(
        [*torchrun, str(SCRIPT), str(folder)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"process{rank}.pt", weights_only=False) for rank in range(PROCESSES)]


def test_together_they_write_what_one_process_does(found: list[dict[Any, dict[str, Any]]]) -> None:
    from distributed.sharding_run import draw, write

    for (shape, dtype, transposed), first in found[0].items():
        weight, gradient = draw(shape, dtype)
        before = weight.clone()
        write(weight, gradient, transposed)
        assert not torch.equal(weight, before)
        # A sum that is rounded differently may fall on the other side of its random number.
        different = (weight != first["whole"]).double().mean().item()
        if dtype == torch.float32:
            torch.testing.assert_close(first["whole"], weight)
        else:
            assert different < 1e-4
        for other in found[1:]:
            assert torch.equal(other[shape, dtype, transposed]["whole"], first["whole"])


def test_the_parts_cover_the_weight_once(found: list[dict[Any, dict[str, Any]]]) -> None:
    for key, first in found[0].items():
        covered = torch.zeros(key[0], dtype=torch.int)
        for process in found:
            assert len(process[key]["own"]) <= 3
            for values, row, column in process[key]["own"]:
                rows, columns = slice(row, row + len(values)), slice(column, column + values.shape[1])
                covered[rows, columns] += 1
                assert torch.equal(first["whole"][rows, columns], values)
        assert (covered == 1).all()
