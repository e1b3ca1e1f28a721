"""`eval_suite`: a suite beside Trainer's own evaluation, with the numbers that it gives by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import SHAPE, BuildTrainer, build_model
from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from r2f_hf.evaluation import load_suite, run_suite


@pytest.fixture
def folder(tmp_path: Path, forget_rows: list[dict[str, Any]], retain_rows: list[dict[str, Any]]) -> str:
    data = tmp_path / "tofu"
    data.mkdir()
    wrong = {"perturbed_answer": ["By the old island.", "In the desert."]}
    for name, rows in (("forget01_perturbed", forget_rows), ("retain_perturbed", retain_rows[:4])):
        (data / f"{name}.json").write_text("".join(json.dumps(row | wrong) + "\n" for row in rows))
    return str(data)


def test_the_suite_is_logged_and_gives_what_it_gives_by_itself(
    tokenizer: PreTrainedTokenizerFast, build_trainer: BuildTrainer, folder: str
) -> None:
    # The suite generates 64 tokens.
    model = build_model(LlamaConfig(**SHAPE | {"max_position_embeddings": 128}))
    trainer = build_trainer(
        model,
        max_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        eval_suite="tofu",
        eval_suite_data=folder,
        metric_for_best_model="tofu_truth_ratio",
    )
    trainer.train()
    logged = [log["eval_tofu_truth_ratio"] for log in trainer.state.log_history if "eval_tofu_truth_ratio" in log]
    assert len(logged) == 2 and logged[0] != logged[1]
    metrics = trainer.evaluate()
    assert metrics["eval_forget_probability"] == pytest.approx(metrics["eval_tofu_forget_probability"], rel=1e-4)
    expected, _ = run_suite("tofu", trainer.model.unload().eval(), tokenizer, load_suite("tofu", folder))
    found = {name.removeprefix("eval_tofu_"): value for name, value in metrics.items() if "_tofu_" in name}
    assert found == pytest.approx(expected, rel=1e-4)
    # The rows of one's own are evaluated by themselves.
    assert not any("tofu" in name for name in trainer.evaluate([{"question": "Who?", "answer": "Orla1."}]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eval_suite": "tofo"}, "Unknown suite: 'tofo'. Did you mean 'tofu'"),
        ({"eval_suite": "own"}, "`eval_suite='own'` has no rows of its own"),
        ({"eval_suite": "tofu", "eval_forget_split": "forget05"}, "forget05_perturbed.json"),
    ],
)
def test_mistakes_are_refused_before_the_model_is_wrapped(
    settings: dict[str, str], message: str, model: PreTrainedModel, build_trainer: BuildTrainer, folder: str
) -> None:
    names = set(model.state_dict())
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        build_trainer(model, eval_suite_data=folder, **settings)
    assert set(model.state_dict()) == names
