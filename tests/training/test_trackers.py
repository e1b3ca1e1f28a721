"""TensorBoard, trackio and W&B get the same names, in one run each, and the histogram of fidelity."""

from __future__ import annotations

import json
import sqlite3
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import BuildTrainer, process_environment
from transformers import PreTrainedModel

from r2f_hf.training.trackers import HISTOGRAM


# Trackio and W&B choose their folders when they are imported, so that each has a process of its own.
SCRIPT = """
import sys
import conftest
from r2f_hf import R2FConfig, R2FTrainer

settings = dict(use_cpu=True, disable_tqdm=True, save_strategy="no", per_device_train_batch_size=2, rank=8)
args = R2FConfig(sys.argv[1], report_to=[sys.argv[2]], logging_steps=1, max_steps=2, **settings)
rows = dict(forget_dataset=conftest.rows("Orla", 6), retain_dataset=conftest.rows("Bram", 10))
trainer = R2FTrainer(conftest.build_model(), args, processing_class=conftest.build_tokenizer(), **rows)
trainer.unlearn()
trainer.end_training()
"""
# Once per run, at its end. Trackio leaves them out, and W&B leaves out the prefix.
ONCE = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos", "epoch"}
NAMES = {
    HISTOGRAM,
    "train/loss",
    "train/forget_loss",
    "train/retain_loss",
    "train/learning_rate",
    "train/grad_norm",
    "train/r2f/fidelity",
    "train/r2f/fidelity_min",
    "train/r2f/relative_error",
    "train/r2f/gradient_norm",
    *(f"eval/{split}_{name}" for split in ("forget", "retain") for name in ("loss", "probability")),
}


def tracked(tracker: str, folder: Path, **environment: str) -> None:
    """A run that reports to a tracker."""
    pytest.importorskip(tracker)
    command = [sys.executable, "-c", SCRIPT, str(folder / "output"), tracker]
    environment = process_environment(**environment)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def same_names(found: set[str]) -> bool:
    """Whether these are the names, apart from times and from what is logged once."""
    left = {name for name in found if name.removeprefix("train/") not in ONCE}
    return {name for name in left if not name.endswith(("_runtime", "_per_second", "_time", "global_step"))} == NAMES


def test_tensorboard(build_trainer: BuildTrainer, model: PreTrainedModel, tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    build_trainer(model, report_to=["tensorboard"], logging_steps=1).unlearn()
    # All logs are in one folder, in the output folder.
    (folder,) = {file.parent for file in tmp_path.rglob("events.out.tfevents.*")}
    assert folder.is_relative_to(tmp_path / "output" / "runs")
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0})
    events.Reload()
    tags = events.Tags()
    assert tags["histograms"] == [HISTOGRAM]
    assert same_names({*tags["scalars"], *tags["histograms"]})
    histograms = events.Histograms(HISTOGRAM)
    assert [each.step for each in histograms] == [1, 2]
    for each, mean in zip(histograms, events.Scalars("train/r2f/fidelity"), strict=True):
        # Two layers have seven modules each.
        assert each.histogram_value.num == 14
        assert each.histogram_value.sum / 14 == pytest.approx(mean.value, rel=1e-5)
    # Before training and after it.
    assert [each.step for each in events.Scalars("eval/forget_probability")] == [0, 2]


def test_trackio(tmp_path: Path) -> None:
    tracked("trackio", tmp_path, TRACKIO_DIR=str(tmp_path / "trackio"))
    (file,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(file) as connection:
        lines = connection.execute("SELECT run_name, metrics FROM metrics ORDER BY id").fetchall()
    logs = [json.loads(text) for _, text in lines]
    assert len({run for run, _ in lines}) == 1
    assert same_names({name for log in logs for name in log})
    histograms = [log[HISTOGRAM] for log in logs if HISTOGRAM in log]
    assert [sum(each["values"]) for each in histograms] == [14, 14]
    assert [log["train/global_step"] for log in logs if "eval/forget_probability" in log] == [0, 2]


def wandb_logs(file: Path) -> list[dict[str, Any]]:
    """
    What was logged to a `.wandb` file.

    After 7 bytes it is in the log format of LevelDB: blocks of 32 KiB with pieces of records, each behind its
    checksum, length and kind. The records are protocol buffers. W&B's package has their classes, but no reader.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, record, logs = file.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        left = 2**15 - place % 2**15
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<4xHB", data, place)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        # 2 and 3 are the first and the middle pieces of a record.
        if kind in (1, 4):
            log: dict[str, Any] = {}
            for item in Record.FromString(record).history.item:
                *outer, name = item.nested_key or [item.key]
                inner = log
                for key in outer:
                    inner = inner.setdefault(key, {})
                inner[name] = json.loads(item.value_json)
            logs += [log] if log else []
            record = b""
    return logs


def test_wandb_offline(tmp_path: Path) -> None:
    tracked("wandb", tmp_path, WANDB_MODE="offline", WANDB_SILENT="true", WANDB_DIR=str(tmp_path))
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    logs = wandb_logs(file)
    assert same_names({name for log in logs for name in log if name[0] != "_"})
    histograms = [log[HISTOGRAM] for log in logs if HISTOGRAM in log]
    assert [sum(each["values"]) for each in histograms] == [14, 14]
    assert [log["train/global_step"] for log in logs if "eval/forget_probability" in log] == [0, 2]
