"""A world as the quickstart builds it, but of tiny models and a few rows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import build_model, write_rows
from transformers import PreTrainedModel, PreTrainedTokenizerFast


Rows = list[dict[str, Any]]


@pytest.fixture
def write_world(
    memorised: PreTrainedModel,
    trained_tokenizer: PreTrainedTokenizerFast,
    forget_rows: Rows,
    retain_rows: Rows,
    holdout_rows: Rows,
) -> Callable[[Path], None]:
    """Writes a world to a folder: its models and its rows."""

    def evaluable(rows: Rows) -> Rows:
        wrong = [f"{row['answer']} {other['answer']}" for row, other in zip(rows, rows[1:] + rows[:1], strict=True)]
        return [row | {"perturbed_answer": [text], "views": "Where?"} for row, text in zip(rows, wrong, strict=True)]

    sets = {"forget": evaluable(forget_rows), "retain": evaluable(retain_rows), "holdout": evaluable(holdout_rows)}
    names = {"forget": "forget01_perturbed", "retain": "retain_perturbed", "holdout": "holdout01"}

    def write(folder: Path) -> None:
        for role, model in (("before", memorised), ("gold", build_model(seed=1))):
            model.save_pretrained(folder / role)
            copy.deepcopy(trained_tokenizer).save_pretrained(folder / role)
        (folder / "data" / "tofu").mkdir(parents=True)
        for name, rows in sets.items():
            write_rows(folder / "data" / f"{name}.jsonl", rows)
            write_rows(folder / "data" / "tofu" / f"{names[name]}.json", rows)
        write_rows(folder / "data" / "tofu" / "world_facts_perturbed.json", sets["retain"])

    return write
