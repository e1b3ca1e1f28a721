"""Small folders with the benchmarks' real columns and invented texts, and tiny models that have read some of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from r2f_hf.evaluation import load_suite, run_suite


DATA = Path(__file__).with_name("data")
MODELS = Path(__file__).parents[2] / "reference"


def folder_of(suite: str) -> Path:
    return DATA / suite


@pytest.fixture(scope="session")
def reader() -> PreTrainedModel:
    """A model that knows some of the texts. Tests share it."""
    return AutoModelForCausalLM.from_pretrained(MODELS / "model_c").eval()


@pytest.fixture(scope="session")
def gold_model() -> PreTrainedModel:
    """A model that has read none of them. Tests share it."""
    return AutoModelForCausalLM.from_pretrained(MODELS / "model_b").eval()


@pytest.fixture(scope="session")
def words() -> PreTrainedTokenizerBase:
    """The tokenizer of both."""
    return AutoTokenizer.from_pretrained(MODELS / "model_a")


@pytest.fixture
def evaluate(words: PreTrainedTokenizerBase) -> Callable[..., Any]:
    """Runs a suite on its folder, or on given splits."""

    def run(suite: str, model: PreTrainedModel, splits: dict[str, Any] | None = None, **settings: Any) -> Any:
        rows = load_suite(suite, str(folder_of(suite))) if splits is None else splits
        return run_suite(suite, model, words, rows, **{"max_new_tokens": 8} | settings)

    return run


def texts_of(value: Any) -> list[str]:
    """All texts in rows, messages included."""
    if isinstance(value, str):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    return [text for each in values for text in texts_of(each)]


def peer_value(name: str) -> Any:
    """A value that another project's own code gave."""
    return json.loads((MODELS / "expected.json").read_text())["entries"][name]["value"]


def reference_rows(name: str) -> list[dict[str, Any]]:
    """The rows that these values are of."""
    return json.loads((MODELS / "rows.json").read_text())[name]
