"""Settings under which a run could do nothing, or not end well, are refused before anything else happens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import ParallelismConfig
from conftest import BuildTrainer, changed, weights
from datasets import Dataset
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainingArguments

from r2f_hf import R2FConfig, R2FTrainer
from r2f_hf.training.checks import check_config, check_sampling


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
            {"dataloader_persistent_workers": True},
            "`dataloader_persistent_workers=True` .*: persistent_workers option",
        ),
        (
            {"load_best_model_at_end": True, "save_strategy": "steps", "eval_strategy": "steps"},
            "`metric_for_best_model` is 'eval_loss' .* Choose one of eval_forget_loss, eval_forget_probability,",
        ),
        ({"metric_for_best_model": "forget_probabilty"}, "'eval_forget_probabilty' .* eval_forget_probability"),
        (
            {"metric_for_best_model": "forget_probability", "prediction_loss_only": True},
            "'eval_forget_probability' .* Choose one of eval_forget_loss, eval_retain_loss, with",
        ),
    ],
)
def test_a_run_that_could_do_nothing_is_refused(
    settings: dict[str, Any], message: str, model: PreTrainedModel, build_trainer: BuildTrainer
) -> None:
    before = weights(model)
    with pytest.raises(ValueError, match=message):
        build_trainer(model, **settings)
    assert not changed(before, weights(model))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"remove_unused_columns": True},
            "`remove_unused_columns=True` keeps only what the model's forward pass takes",
        ),
        ({"label_names": ["answers"]}, r"`label_names=\['answers'\]` names columns that batches here do not have"),
        ({"accelerator_config": {"dispatch_batches": True}}, "`dispatch_batches=True`: it deals single rows"),
        ({"parallelism_config": ParallelismConfig(cp_size=2)}, "`parallelism_config` has cp_size=2"),
        ({"parallelism_config": ParallelismConfig(tp_size=2, sp_size=2)}, "has tp_size=2, sp_size=2"),
        ({"auto_find_batch_size": True}, "`auto_find_batch_size` begins a run anew"),
        ({"bf16_full_eval": True}, "`bf16_full_eval` rounds the model itself"),
        ({"fp16_full_eval": True}, "`fp16_full_eval` rounds the model itself"),
        ({"optim": "lomo"}, "`optim='lomo'` uses up each gradient in the backward pass"),
        ({"optim": "apollo_adamw_layerwise"}, "`optim='apollo_adamw_layerwise'` uses up each gradient"),
        (
            {"push_to_hub": True, "hub_strategy": "checkpoint"},
            "`hub_strategy='checkpoint'` uploads checkpoints before",
        ),
    ],
)
def test_a_setting_that_would_be_lost_or_do_harm_is_refused(
    settings: dict[str, Any], message: str, model: PreTrainedModel, build_trainer: BuildTrainer
) -> None:
    before = weights(model)
    with pytest.raises(ValueError, match=message):
        build_trainer(model, **settings)
    assert not changed(before, weights(model))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"accelerator_config": {"even_batches": False}},
            "`even_batches=False`: some processes would get a batch more",
        ),
        (
            {"average_tokens_across_devices": False},
            "`average_tokens_across_devices=False` would take a mean per process",
        ),
        ({"eval_use_gather_object": True}, "`eval_use_gather_object=True` gathers objects"),
    ],
)
def test_a_setting_that_several_processes_cannot_have_is_refused(
    settings: dict[str, Any],
    message: str,
    model: PreTrainedModel,
    build_trainer: BuildTrainer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build_trainer(model, **settings)
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    before = weights(model)
    with pytest.raises(ValueError, match=message):
        build_trainer(model, **settings)
    assert not changed(before, weights(model))


def test_a_batch_that_is_split_over_processes_is_no_larger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    settings = {"dataloader_drop_last": True, "per_device_train_batch_size": 4, "use_cpu": True}
    check_sampling(R2FConfig(str(tmp_path), accelerator_config={"split_batches": True}, **settings), 6)
    with pytest.raises(ValueError, match="a batch takes 8 over all processes"):
        check_sampling(R2FConfig(str(tmp_path), **settings), 6)


def test_predictions_may_be_a_list_of_batches(model: PreTrainedModel, build_trainer: BuildTrainer) -> None:
    settings = {"per_device_eval_batch_size": 4}
    expected = build_trainer(model, **settings).evaluate()
    found = build_trainer(model, eval_do_concat_batches=False, **settings).evaluate()
    assert found["eval_retain_probability"] == expected["eval_retain_probability"]


def test_persistent_workers_evaluate_each_set_on_its_own_rows(
    model: PreTrainedModel, build_trainer: BuildTrainer, holdout_rows: list[dict[str, Any]]
) -> None:
    sets = {"first": holdout_rows[:2], "second": holdout_rows[2:]}
    expected = build_trainer(model).evaluate(sets)
    trainer = build_trainer(model, dataloader_num_workers=1, dataloader_persistent_workers=True)
    found = trainer.evaluate(sets)
    for name in sets:
        assert found[f"eval_{name}_probability"] == pytest.approx(expected[f"eval_{name}_probability"])
    assert found["eval_first_probability"] != found["eval_second_probability"]
    # The trainer's own sets keep their workers.
    assert trainer.get_eval_dataloader("forget") is trainer.get_eval_dataloader("forget")


def test_the_first_process_of_each_node_saves_the_model(
    model: PreTrainedModel, build_trainer: BuildTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = build_trainer(model)
    # Transformers would take this process for the first one of a second node.
    monkeypatch.setattr("transformers.distributed.mixin._is_torch_distributed_initialized", lambda: True)
    monkeypatch.setattr("transformers.distributed.mixin._get_torch_distributed_rank", lambda: 1)
    trainer.save_model(str(tmp_path / "node"))
    assert (tmp_path / "node" / "model.safetensors").is_file()


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optim_args": "momentum"}, "No optimizer can be made of `optim='sgd'` and `optim_args='momentum'`"),
        ({"lr_scheduler_kwargs": {"power": 2}}, r"`lr_scheduler_kwargs=\{'power': 2\}` .* keyword argument 'power'"),
    ],
)
def test_options_that_an_optimizer_or_a_schedule_does_not_take_are_refused(
    settings: dict[str, Any], message: str, model: PreTrainedModel, build_trainer: BuildTrainer
) -> None:
    with pytest.raises(ValueError, match=message):
        build_trainer(model, **settings)
    # An optimizer of the caller's own has no options.
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    build_trainer(model, data={"optimizers": (optimizer, LambdaLR(optimizer, lambda step: 1.0))}, **settings)


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        ("gpt2", "`processing_class` is a str; a tokenizer is needed, as `AutoTokenizer.from_pretrained` loads it"),
        (None, "No tokenizer was passed, and the model was not loaded from a folder with one"),
    ],
)
def test_what_is_no_tokenizer_is_refused(
    tokenizer: str | None, message: str, model: PreTrainedModel, build_trainer: BuildTrainer
) -> None:
    with pytest.raises(ValueError, match=message):
        build_trainer(model, data={"processing_class": tokenizer})


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


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_steps": 3, "warmup_steps": 1000}, True),
        ({"max_steps": 1, "warmup_steps": 1}, True),
        ({"max_steps": 3, "warmup_steps": 2}, False),
        ({"max_steps": 3, "warmup_steps": 0.5}, False),
        ({"max_steps": 3, "warmup_steps": 1000, "lr_scheduler_type": "constant"}, False),
    ],
)
def test_a_run_that_ends_within_the_warm_up_is_told(
    settings: dict[str, Any],
    said: bool,
    model: PreTrainedModel,
    build_trainer: BuildTrainer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    build_trainer(model, **settings)
    assert ("The run ends within the warm-up" in caplog.text) == said


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"learning_rate": 1e-30}, True), ({"max_steps": 1, "warmup_steps": 1}, True), ({"max_steps": 2}, False)],
)
def test_a_run_that_has_changed_nothing_is_told(
    settings: dict[str, Any],
    said: bool,
    model: PreTrainedModel,
    build_trainer: BuildTrainer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = weights(model)
    build_trainer(model, **settings).unlearn()
    assert ("no weight has changed: what is saved knows what it knew" in caplog.text) == said
    assert (not changed(before, model.state_dict())) == said


def test_a_model_that_has_been_destroyed_is_told(
    model: PreTrainedModel, build_trainer: BuildTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = build_trainer(model, learning_rate=1e30)
    trainer.evaluate()
    assert "predictions are NaN" not in caplog.text
    trainer.train()
    trainer.evaluate()
    assert "predictions are NaN" in caplog.text and "`learning_rate` was far too large" in caplog.text


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
    with pytest.raises(ValueError, match=r"`predict` takes one set of rows, and got sets by name \('mine'\)"):
        trainer.predict({"mine": holdout_rows})
    with pytest.raises(ValueError, match=r"The evaluation set has the columns 'Orla'\. Rows have"):
        trainer.evaluate([{"Orla": 1}])


def test_processes_that_do_not_know_of_each_other_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = R2FConfig(str(tmp_path), use_cpu=True)
    assert args.world_size == 1
    # As `accelerate launch` with two processes does, where the command has no `--use_cpu` and the machine no GPU.
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_config(args)
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ValueError, match=r"2 processes were launched.*--use_cpu"):
        check_config(args)


def test_reentrant_checkpointing_is_refused_where_it_would_see_another_model(tmp_path: Path) -> None:
    reentrant = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    check_config(R2FConfig(str(tmp_path), use_cpu=True, **reentrant))
    with pytest.raises(ValueError, match=r"`simulated_relearning` does not work with .*use_reentrant"):
        check_config(R2FConfig(str(tmp_path), use_cpu=True, simulated_relearning=0.1, **reentrant))
