"""A holdout set ends a run on all processes at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from conftest import process_environment


SCRIPT = Path(__file__).with_name("stopping_run.py")


def test_all_processes_end_at_the_step_where_the_first_one_does(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT)]
    done = subprocess.run(
        [*command, str(tmp_path)], env=process_environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"process{rank}.json").read_text()) for rank in range(2))
    assert first == second
    by_default, with_ignorance = first
    assert by_default["step"] == 1 and by_default["reason"] is not None
    assert with_ignorance["reason"] is not None
