"""What a model gives for the metrics is the same on two processes as on one, with whole and with sharded weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build_model, process_environment
from distributed.scoring_run import score
from transformers import PreTrainedModel


SCRIPT = Path(__file__).with_name("scoring_run.py")


def numbers(value: Any) -> list[float]:
    return [number for each in value for number in numbers(each)] if isinstance(value, list) else [float(value)]


def two_models(folder: Path) -> list[PreTrainedModel]:
    """Two models that differ, saved."""
    models = [build_model("llama").eval(), build_model("llama").eval()]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in models[1].parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    for name, model in zip(("one", "other"), models, strict=True):
        model.save_pretrained(folder / name / "base")
    return models


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_two_processes_give_what_one_gives(sharded: bool, tmp_path: Path) -> None:
    expected = score(*two_models(tmp_path))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT)]
    command += [str(tmp_path), *["--sharded"] * sharded]
    done = subprocess.run(command, env=process_environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    for found in (torch.load(tmp_path / f"process{rank}.pt") for rank in range(2)):
        if sharded:
            # The gradients of sharded weights are added up over the processes' rows.
            assert "need whole weights on each process" in found.pop("refused")
        for name, value in found.items():
            assert numbers(value) == pytest.approx(numbers(expected[name]), abs=1e-4), name
        assert len(found) == 5 - sharded
