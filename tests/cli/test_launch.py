"""`accelerate launch` with the recipes' configurations: real processes, and the report of a single one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import changed, distance, weights, write_rows
from transformers import AutoModelForCausalLM, PreTrainedModel


CONFIGS = Path(__file__).parents[2] / "recipes" / "accelerate_configs"


def launch(config: str, *argv: str) -> None:
    """Run `r2f` under a configuration."""
    module = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / config), "--main_process_port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *module, "-m", "r2f_hf.cli", *argv]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_a_launched_command_gives_the_report_of_one_process(
    saved: Path,
    memorised: PreTrainedModel,
    forget_rows: list[dict[str, Any]],
    retain_rows: list[dict[str, Any]],
    tmp_path: Path,
) -> None:
    rows = {"forget": forget_rows, "retain": retain_rows}
    data = [f"--{name}_data={write_rows(tmp_path / f'{name}.jsonl', found)}" for name, found in rows.items()]
    for name, found in rows.items():
        wrong = [row | {"perturbed_answer": ["The island.", "The forest."]} for row in found]
        write_rows(
            tmp_path / "suite" / {"forget": "forget01_perturbed.json", "retain": "retain_perturbed.json"}[name], wrong
        )
    models, reports = {}, {}
    for config, size in (("cpu.yaml", 4), ("ddp.yaml", 2), ("fsdp2.yaml", 2)):
        folder, evaluation = tmp_path / config, tmp_path / f"{config}-evaluation"
        unlearn = ["--model_name_or_path", str(saved), "--output_dir", str(folder), "--max_steps", "4", "--rank", "8"]
        unlearn += ["--per_device_train_batch_size", str(size), "--learning_rate", "0.5", "--report_to", "none"]
        launch(config, "unlearn", *data, *unlearn, "--use_cpu", "--save_strategy", "no")
        evaluate = ["--data", str(tmp_path / "suite"), "--max_new_tokens", "6", "--dtype", "float32"]
        launch(config, "evaluate", *evaluate, "--model_name_or_path", str(folder), "--output_dir", str(evaluation))
        models[config] = weights(AutoModelForCausalLM.from_pretrained(folder))
        reports[config] = {
            **json.loads((folder / "after_results.json").read_text()),
            **json.loads((evaluation / "report.json").read_text())["metrics"],
        }
    alone = reports["cpu.yaml"]
    names = [name for name in alone if "probability" in name or "rouge" in name]
    assert len(names) > 5
    moved = distance(weights(memorised), models["cpu.yaml"])
    assert len(changed(weights(memorised), models["cpu.yaml"])) == 14
    for config in ("ddp.yaml", "fsdp2.yaml"):
        assert distance(models["cpu.yaml"], models[config]) < 1e-3 * moved
        found = {name: reports[config][name] for name in names}
        assert found == pytest.approx({name: alone[name] for name in names}, rel=1e-3, abs=1e-6)
