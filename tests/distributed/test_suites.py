"""Every suite gives on two processes what it gives on one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import process_environment
from distributed.suites_run import metrics_of_all

from r2f_hf.evaluation import SUITES


SCRIPT = Path(__file__).with_name("suites_run.py")


@pytest.fixture(scope="module")
def expected() -> dict[str, dict[str, float]]:
    return metrics_of_all()


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_two_processes_give_what_one_gives(
    sharded: bool, expected: dict[str, dict[str, float]], tmp_path: Path
) -> None:
    assert expected.keys() == SUITES.keys() | {"written", "depth"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT)]
    command += [str(tmp_path), *["--sharded"] * sharded]
    done = subprocess.run(command, env=process_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(2):
        found = json.loads((tmp_path / f"process{rank}.json").read_text())
        for suite, metrics in expected.items():
            assert found[suite] == pytest.approx(metrics, abs=1e-4, rel=1e-4), suite
