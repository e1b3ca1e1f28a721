"""A run that was unlearned, evaluated and attacked by the commands, shared by the tests of what is made of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from conftest import build_model, write_rows
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from r2f_hf import cli


SETTINGS = [
    *("--use_cpu", "--report_to=none", "--save_strategy=no", "--eval_strategy=steps", "--eval_steps=2"),
    *("--per_device_train_batch_size=2", "--rank=8", "--logging_steps=1"),
]


def unlearn(folder: Path, output: Path, *more: str) -> Path:
    """Unlearn on the rows in the folder, and return the output folder."""
    model = f"--model_name_or_path={folder / 'before'}"
    cli.main(["unlearn", model, f"--output_dir={output}", *sets(folder, "forget", "retain"), *SETTINGS, *more])
    return output


def sets(folder: Path, *names: str) -> list[str]:
    """The options that name the rows."""
    return [f"--{name}_data={folder / 'rows' / name}.jsonl" for name in names]


def models(folder: Path, output: Path) -> list[str]:
    """The options that name the models."""
    roles = {"model_name_or_path": output, "original_model": folder / "before", "gold_model": folder / "gold"}
    return [f"--{role}={model}" for role, model in roles.items()]


@pytest.fixture(scope="session")
def world(
    tmp_path_factory: pytest.TempPathFactory,
    memorised: PreTrainedModel,
    trained_tokenizer: PreTrainedTokenizerFast,
    forget_rows: list[dict[str, Any]],
    retain_rows: list[dict[str, Any]],
    holdout_rows: list[dict[str, Any]],
) -> Path:
    """A folder with the models `before` and `gold`, and the rows."""
    folder = tmp_path_factory.mktemp("world")
    for name, model in (("before", memorised), ("gold", build_model(seed=1))):
        model.save_pretrained(folder / name)
        copy.deepcopy(trained_tokenizer).save_pretrained(folder / name)
    for name, rows in (("forget", forget_rows), ("retain", retain_rows), ("holdout", holdout_rows)):
        write_rows(folder / "rows" / f"{name}.jsonl", rows)
    return folder


@pytest.fixture(scope="session")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run, with its evaluation and its attacks next to the model."""
    folder = tmp_path_factory.mktemp("run")
    output = unlearn(world, folder / "unlearned", "--max_steps=4", "--learning_rate=0.3")
    more = ["--batch_size=8", "--max_new_tokens=8"]
    cli.main(
        [
            *("evaluate", "--suite=own", *models(world, output), *sets(world, "forget", "retain", "holdout")),
            *(f"--output_dir={folder / 'evaluation'}", *more),
        ]
    )
    cli.main(
        [
            *("attack", "--attacks=relearning,pruning", *models(world, output), *sets(world, "forget", "retain")),
            *(f"--output_dir={folder / 'attacks'}", *more),
        ]
    )
    return folder
