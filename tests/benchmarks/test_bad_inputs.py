"""The search for inputs that are neither trained on nor refused: it finds none in a few seconds, and would see one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import process_environment
from transformers import TrainerCallback

from r2f_hf import R2FTrainer


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_a_few_seconds_of_inputs_at_random_are_trained_on_or_refused(tmp_path: Path) -> None:
    script, report = BENCHMARKS / "bad_inputs.py", tmp_path / "report.json"
    run = subprocess.run(
        [sys.executable, str(script), "--quick", "--output", str(report)],
        env=process_environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr[-3000:]
    counts = json.loads(report.read_text())
    assert counts["trained"] > 0 and counts["findings"] == []
    assert counts["tried"] == counts["trained"] + counts["refused"]


class Breaks(TrainerCallback):
    """Does something to the run after its first step."""

    def __init__(self, what: Callable[[Any], Any]):
        self.what = what

    def on_step_end(self, *args: Any, model: torch.nn.Module, **kwargs: Any) -> None:
        self.what(model)


def fail(model: torch.nn.Module) -> None:
    raise KeyError("x")


def spoil(model: torch.nn.Module) -> None:
    with torch.no_grad():
        next(model.parameters())[0] = torch.nan


def move_another(model: torch.nn.Module) -> None:
    with torch.no_grad():
        next(model.parameters()).add_(1)


@pytest.mark.parametrize(
    ("what", "signature"),
    [
        (fail, "weights changed before an error"),
        (spoil, "weights became NaN or infinite"),
        (move_another, "weights changed that were not to"),
        (lambda model: print("quorblat"), "a text to forget is in a log"),
        (lambda model: Path("note").write_text("the quorblat"), "a text to forget is in a file"),
        (None, ""),
    ],
)
def test_each_kind_of_finding_is_seen(
    what: Callable[[Any], Any] | None, signature: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from shared import fuzz_trial
    from shared.fuzz_rows import DrawnSet, usual_rows

    class BrokenTrainer(R2FTrainer):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, callbacks=[Breaks(what)] if what else [], **kwargs)

    monkeypatch.setattr(fuzz_trial, "R2FTrainer", BrokenTrainer)
    sets = tuple(DrawnSet(name, "question", usual_rows(name, "question", 2)) for name in ("forget", "retain"))
    trial = fuzz_trial.Trial(("llama", "float32", None), "bytes", None, {}, sets, "train")
    verdict = fuzz_trial.run(trial)
    assert (verdict.kind, verdict.signature.partition(" [")[0]) == ("finding" if what else "trained", signature)
