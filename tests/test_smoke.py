"""The shortest way through the package: unlearn, evaluate, take it back. `make test-lowest` runs it too."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import BuildTrainer, changed, process_environment, weights, write_rows
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from r2f_hf import R2FCallback, R2FStep, cli


pytestmark = pytest.mark.smoke


def test_the_command_line_unlearns_evaluates_and_takes_it_back(
    saved: Path,
    forget_rows: list[dict[str, object]],
    retain_rows: list[dict[str, object]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    files = ["--forget_data", write_rows(tmp_path / "forget.jsonl", forget_rows)]
    files += ["--retain_data", write_rows(tmp_path / "retain.jsonl", retain_rows)]
    steps = ["--max_steps", "6", "--rank", "8", "--learning_rate", "0.5", "--per_device_train_batch_size", "3"]
    run = ["--use_cpu", "--report_to", "none", "--disable_tqdm", "true", "--output_dir", "unlearned"]
    cli.main(["unlearn", "--model_name_or_path", str(saved), *files, *steps, *run])
    before, after = (
        json.loads((tmp_path / "unlearned" / f"{when}_results.json").read_text())["eval_forget_probability"]
        for when in ("before", "after")
    )
    assert after < 0.5 * before
    cli.main(["evaluate", "--suite", "own", "--model_name_or_path", "unlearned", *files, "--max_new_tokens", "4"])
    assert "forget_probability" in json.loads((tmp_path / "evaluation" / "report.json").read_text())["metrics"]
    cli.main(["undo", "unlearned"])
    restored = AutoModelForCausalLM.from_pretrained("unlearned")
    assert changed(weights(AutoModelForCausalLM.from_pretrained(saved)), weights(restored)) == set()


def test_a_trainer_goes_on_from_its_checkpoint(build_trainer: BuildTrainer, memorised_model: PreTrainedModel) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1}
    build_trainer(copy.deepcopy(memorised_model), **settings).train()
    trainer = build_trainer(memorised_model, **settings, max_steps=3)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3


def test_an_adapter_takes_the_updates(build_trainer: BuildTrainer, memorised_model: PreTrainedModel) -> None:
    before = weights(memorised_model)
    trainer = build_trainer(memorised_model, update_target="adapter", adapter_rank=4)
    trainer.train()
    trainer.save_model()
    assert changed(before, weights(memorised_model)) == set()
    assert (Path(trainer.args.output_dir) / "adapter_model.safetensors").is_file()


def test_a_step_without_a_trainer(memorised_model: PreTrainedModel, batch: dict[str, object]) -> None:
    before = weights(memorised_model)
    model = get_peft_model(memorised_model, LoraConfig(r=8, lora_alpha=8e-6, target_modules="all-linear"))
    step = R2FStep(model)
    step.begin()
    (-model(**batch).loss).backward()
    step.step(lr=0.1)
    step.end()
    assert changed(before, weights(model.unload()))


def test_the_callback_is_a_callback() -> None:
    assert callable(R2FCallback().on_train_begin)


def test_python_finds_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "r2f_hf.cli", "--version"], env=process_environment(), check=False)
    assert done.returncode == 0
