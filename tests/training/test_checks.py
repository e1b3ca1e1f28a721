"""Settings under which a run could do nothing, or not end well, are refused before anything else happens."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import BuildTrainer, changed, weights
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainingArguments

from r2f_hf import R2FTrainer


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"dataloader_drop_last": True, "per_device_train_batch_size": 8, "max_steps": 20},
            "no step can be taken: the forget set has 6 examples, and a batch takes 8",
        ),
        ({"train_sampling_strategy": "group_by_length"}, "`train_sampling_strategy='group_by_length'` looks for the"),
        ({"max_steps": -1, "num_train_epochs": 0}, "No step would be taken"),
        (
            {"load_best_model_at_end": True, "save_strategy": "steps", "eval_strategy": "steps"},
            "`metric_for_best_model` is 'eval_loss' .* Choose one of eval_forget_loss, eval_forget_probability,",
        ),
        ({"metric_for_best_model": "forget_probabilty"}, "'eval_forget_probabilty' .* eval_forget_probability"),
    ],
)
def test_a_run_that_could_do_nothing_is_refused(
    settings: dict[str, Any], message: str, model: PreTrainedModel, build_trainer: BuildTrainer
) -> None:
    before = weights(model)
    with pytest.raises(ValueError, match=message):
        build_trainer(model, **settings)
    assert not changed(before, weights(model))


def test_settings_that_do_work_are_taken(model: PreTrainedModel, build_trainer: BuildTrainer) -> None:
    best = {"load_best_model_at_end": True, "save_strategy": "steps", "eval_strategy": "steps", "save_steps": 1}
    best |= {"eval_steps": 1, "metric_for_best_model": "forget_probability", "greater_is_better": False}
    trainer = build_trainer(model, dataloader_drop_last=True, train_sampling_strategy="sequential", **best)
    assert trainer.train().metrics["steps"] == 2
    assert trainer.state.best_model_checkpoint is not None


def test_metrics_of_ones_own_may_have_any_name(model: PreTrainedModel, build_trainer: BuildTrainer) -> None:
    data = {"compute_metrics": lambda prediction: {"mine": 1.0}}
    build_trainer(model, data=data, metric_for_best_model="forget_mine")
    with pytest.raises(ValueError, match="which no evaluation gives"):
        build_trainer(model, data=data, metric_for_best_model="mine")


def test_arguments_of_another_class_are_answered_with_the_right_one(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, forget_rows: list[dict[str, Any]], tmp_path: Any
) -> None:
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match="`args` is a TrainingArguments; an R2FConfig is needed"):
        R2FTrainer(model, args, forget_rows, forget_rows, processing_class=tokenizer)


@pytest.mark.parametrize(("rate", "said"), [(1e-5, True), (1e-3, True), (0.05, False)])
def test_a_rate_of_a_fine_tuning_recipe_is_told(
    rate: float,
    said: bool,
    model: PreTrainedModel,
    build_trainer: BuildTrainer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    build_trainer(model, learning_rate=rate)
    assert ("will hardly change anything: it is the Frobenius norm" in caplog.text) == said


@pytest.mark.parametrize("rate", [0.0, -0.1])
def test_a_rate_that_cannot_move_anything_is_refused(
    rate: float, model: PreTrainedModel, build_trainer: BuildTrainer
) -> None:
    with pytest.raises(ValueError, match="`learning_rate` must be positive"):
        build_trainer(model, learning_rate=rate)


def test_rows_are_evaluated_and_predicted_in_the_form_that_the_constructor_takes(
    model: PreTrainedModel, build_trainer: BuildTrainer, holdout_rows: list[dict[str, Any]]
) -> None:
    trainer = build_trainer(model.eval(), data={"holdout_dataset": holdout_rows})
    expected = trainer.evaluate()["eval_holdout_probability"]
    for rows in (holdout_rows, Dataset.from_list(holdout_rows)):
        assert trainer.evaluate(rows)["eval_probability"] == pytest.approx(expected, rel=1e-5)
    named = trainer.evaluate({"mine": Dataset.from_list(holdout_rows)})
    assert named["eval_mine_probability"] == pytest.approx(expected, rel=1e-5)
    assert trainer.evaluate("holdout")["eval_probability"] == pytest.approx(expected, rel=1e-5)
    assert trainer.predict(holdout_rows).metrics["test_probability"] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match=r"The evaluation set has the columns 'Orla'\. Rows have"):
        trainer.evaluate([{"Orla": 1}])
