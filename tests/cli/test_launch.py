"""`accelerate launch` with the recipes' configurations: real processes give the report of a single one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import changed, distance, process_environment, weights, write_rows
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase


CONFIGS = Path(__file__).parents[2] / "recipes" / "accelerate_configs"


def launch(config: str, *argv: str) -> subprocess.CompletedProcess:
    """Run `r2f` under a configuration."""
    module = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / config), "--main_process_port", "0"]
    environment = process_environment()
    command = [sys.executable, *module, "-m", "r2f_hf.cli", *argv]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def inputs(
    memorised: PreTrainedModel,
    trained_tokenizer: PreTrainedTokenizerBase,
    forget_rows: list[dict[str, Any]],
    retain_rows: list[dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder with a model that knows the rows, the rows, and a suite of them."""
    folder = tmp_path_factory.mktemp("inputs")
    memorised.save_pretrained(folder / "model")
    trained_tokenizer.save_pretrained(folder / "model")
    for name, split, rows in (
        ("forget", "forget01_perturbed", forget_rows),
        ("retain", "retain_perturbed", retain_rows),
    ):
        write_rows(folder / f"{name}.jsonl", rows)
        wrong = [row | {"perturbed_answer": ["The island.", "The forest."]} for row in rows]
        write_rows(folder / "suite" / f"{split}.json", wrong)
    return folder


def unlearn(config: str, inputs: Path, folder: Path, size: int, *flags: str) -> subprocess.CompletedProcess:
    """Launch `r2f unlearn`."""
    data = [f"--{name}_data={inputs / name}.jsonl" for name in ("forget", "retain")]
    settings = ["--max_steps", "4", "--rank", "8", "--learning_rate", "0.13", "--report_to", "none"]
    settings += ["--per_device_train_batch_size", str(size), "--save_strategy", "no"]
    # With `--use_cpu`, accelerate would leave DeepSpeed out.
    settings += ["--ddp_backend", "gloo"] if config == "zero3.yaml" else ["--use_cpu"]
    model = ["--model_name_or_path", str(inputs / "model"), "--output_dir", str(folder)]
    return launch(config, "unlearn", *data, *model, *settings, *flags)


def outcome(config: str, inputs: Path, folder: Path, size: int) -> tuple[dict[str, Tensor], dict[str, float]]:
    """What unlearning and evaluating leave: weights and a report."""
    done = unlearn(config, inputs, folder, size)
    assert done.returncode == 0, done.stderr[-3000:]
    suite = ["--data", str(inputs / "suite"), "--max_new_tokens", "6", "--dtype", "float32"]
    evaluation = ["--model_name_or_path", str(folder), "--output_dir", str(folder / "evaluation")]
    done = launch(config, "evaluate", *suite, *evaluation)
    assert done.returncode == 0, done.stderr[-3000:]
    after = json.loads((folder / "after_results.json").read_text())
    report = json.loads((folder / "evaluation" / "report.json").read_text())["metrics"]
    return weights(AutoModelForCausalLM.from_pretrained(folder)), after | report


@pytest.fixture(scope="module")
def alone(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], dict[str, float]]:
    """What a single process leaves."""
    return outcome("cpu.yaml", inputs, tmp_path_factory.mktemp("alone"), 4)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["ddp.yaml", "fsdp2.yaml", "zero3.yaml"])
def test_a_launched_command_gives_the_report_of_one_process(
    config: str,
    inputs: Path,
    alone: tuple[dict[str, Tensor], dict[str, float]],
    memorised: PreTrainedModel,
    tmp_path: Path,
) -> None:
    if config == "zero3.yaml":
        pytest.importorskip("deepspeed")
    model, report = alone
    assert len(changed(weights(memorised), model)) == 14
    moved = distance(weights(memorised), model)
    found, found_report = outcome(config, inputs, tmp_path, 2)
    assert distance(model, found) < 1e-3 * moved
    names = [name for name in report if "probability" in name or "rouge" in name]
    assert len(names) > 5
    expected = {name: report[name] for name in names}
    assert {name: found_report[name] for name in names} == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.slow
def test_what_cannot_be_done_under_deepspeed_is_refused(inputs: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    done = unlearn("zero3.yaml", inputs, tmp_path, 2, "--update_target", "adapter")
    assert done.returncode != 0
    assert "An adapter cannot take the updates" in done.stderr
    assert not (tmp_path / "ledger.jsonl").exists()
