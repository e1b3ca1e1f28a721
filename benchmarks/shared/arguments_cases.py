"""What training_arguments.py expects of each field of TrainingArguments on one process, and how that shows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import ParallelismConfig

from shared.arguments_run import STEPS, Bench, Run, same


HONOURED, NO_EFFECT, REFUSED, NOT_TRIED = "honoured", "no effect, by design", "refused", "not tried here"


@dataclass(frozen=True)
class Case:
    """
    A value of a field, and what is to become of it.

    Args:
        field (`str`):
            The field.
        value (`Any`):
            The value. `None` if none is tried.
        verdict (`str`):
            `HONOURED`, `NO_EFFECT`, `REFUSED` or `NOT_TRIED`.
        how (`str`):
            By what it shows, or why not. For a refusal it is the message, and stays empty here.
        check (`Callable`, *optional*):
            Runs the case. Returns whether the verdict is right, or the message of a refusal.
        settings (`dict`):
            What is set in addition.
    """

    field: str
    value: Any
    verdict: str
    how: str
    check: Callable[[Bench], bool | str] | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def shows(name: str, value: Any, how: str, observable: Callable[[Run, Run], bool], **settings: Any) -> Case:
    """The run shows it, next to one without the field."""

    def check(bench: Bench) -> bool:
        return bool(observable(bench.run(**settings | {name: value}), bench.base(**settings)))

    return Case(name, value, HONOURED, how, check, settings)


def no_effect(name: str, value: Any, why: str, **settings: Any) -> Case:
    """The weights, the batches and the metrics are those of a run without the field, bit for bit."""

    def check(bench: Bench) -> bool:
        run, base = bench.run(**settings | {name: value}), bench.base(**settings)
        return run.ids == base.ids and same(run.after, base.after) and run.probabilities == base.probabilities

    return Case(name, value, NO_EFFECT, why, check, settings)


def refused(name: str, value: Any, **settings: Any) -> Case:
    """An error that names the field, and no weight has changed."""

    def check(bench: Bench) -> bool | str:
        run = bench.run(refused=True, **settings | {name: value})
        named = run.error is not None and name in str(run.error)
        return str(run.error) if named and same(run.before, run.after) else False

    return Case(name, value, REFUSED, "", check, settings)


def not_tried(name: str, why: str) -> Case:
    return Case(name, None, NOT_TRIED, why)


def close(first: list[float], second: list[float]) -> bool:
    return len(first) == len(second) and all(
        math.isclose(*pair, rel_tol=1e-4) for pair in zip(first, second, strict=True)
    )


def distance(run: Run) -> float:
    """The norm of all changes together."""
    before, after = run.before, run.after
    return torch.stack([(after[name] - before[name]).norm() for name in before]).norm().item()


def fills_its_folder(bench: Bench) -> bool:
    run = bench.run()
    return all(map(run.has, ("model.safetensors", "ledger.jsonl", "trainer_state.json")))


def evaluations(run: Run) -> list[int]:
    """Steps after which it was evaluated within training, not before or after it."""
    return run.watch.evaluated[2:-2:2]


STEPWISE = {"eval_strategy": "steps", "eval_steps": 1}
SAVING = {"save_strategy": "steps", "save_steps": 1}
BEST = STEPWISE | SAVING | {"metric_for_best_model": "forget_probability", "greater_is_better": False}
ADAMW = {"optim": "adamw_torch"}
CLIPPED = {"normalize_update": False, "learning_rate": 0.01}
MEMORY = {"activation_checkpointing": True}
OVERWRITTEN = "the optimizer moves only the probes, which are drawn anew after each step"
OTHER_BATCHES = "other batches"
SCRIPTS = "Trainer does not read it: it is for scripts"
GPU = "needs a GPU"


def other_batches(run: Run, base: Run) -> bool:
    return run.ids != base.ids


def workers(name: str, value: Any, how: str, attribute: str, **settings: Any) -> Case:
    """A setting of the data loader that changes no batch."""

    def observable(run: Run, base: Run) -> bool:
        found = getattr(run.trainer.callback_handler.train_dataloader, attribute)
        found = getattr(found, "_name", found)
        return found == value and run.ids == base.ids and same(run.after, base.after)

    return shows(name, value, how, observable, **settings)


def half_the_layers(run: Run, base: Run) -> bool:
    # The second of two layers is watched: the first one is checkpointed.
    return run.watch.layer_runs == base.watch.layer_runs // 2 and same(run.after, base.after)


def run_twice(run: Run, base: Run) -> bool:
    return run.watch.layer_runs == 2 * base.watch.layer_runs and same(run.after, base.after)


CASES = [
    # Training
    Case("output_dir", "folder", HONOURED, "the model, its ledger and the logs are there", fills_its_folder),
    shows("per_device_train_batch_size", 3, "forget rows per batch", lambda run, _: run.forget_rows[:2] == [3, 3]),
    shows("num_train_epochs", 2.0, "number of steps", lambda run, _: run.steps == 8, max_steps=-1),
    shows("max_steps", 3, "number of steps", lambda run, _: run.steps == 3),
    shows("learning_rate", 0.2, "norm of the first step", lambda run, _: run.rates[0] == 0.2 and distance(run) > 0.2),
    shows("lr_scheduler_type", "constant", "rate of each step", lambda run, _: run.rates == [0.1] * STEPS),
    shows(
        "lr_scheduler_kwargs",
        {"power": 2.0},
        "rate of each step",
        lambda run, _: close(run.rates, [0.1, 0.05625, 0.025, 0.00625]),
        lr_scheduler_type="polynomial",
    ),
    shows("warmup_steps", 2, "rate of each step", lambda run, _: close(run.rates, [0.0, 0.05, 0.1, 0.05])),
    no_effect("optim", "adamw_torch", OVERWRITTEN),
    refused("optim", "lomo"),
    refused("optim", "galore_adamw_layerwise", optim_target_modules=["q_proj"]),
    no_effect("optim_args", "momentum=0.9", OVERWRITTEN),
    refused("weight_decay", 0.1),
    no_effect("adam_beta1", 0.5, OVERWRITTEN, **ADAMW),
    no_effect("adam_beta2", 0.5, OVERWRITTEN, **ADAMW),
    no_effect("adam_epsilon", 0.1, OVERWRITTEN, **ADAMW),
    no_effect("optim_target_modules", ["q_proj"], "GaLore and APOLLO read it; " + OVERWRITTEN),
    shows(
        "gradient_accumulation_steps",
        2,
        "batches per step",
        lambda run, _: len(run.ids) == 2 * STEPS,
    ),
    no_effect("average_tokens_across_devices", False, "there is one process"),
    no_effect("max_grad_norm", 0.5, "`learning_rate` alone sets the norm of a step"),
    shows(
        "max_grad_norm",
        0.01,
        "norm of the steps",
        lambda run, base: distance(run) <= 0.01 * sum(run.rates) < distance(base),
        **CLIPPED,
    ),
    refused("label_smoothing_factor", 0.1),
    shows("bf16", True, "dtype of a layer's output", lambda run, _: run.watch.dtypes == {torch.bfloat16}),
    not_tried("fp16", GPU),
    refused("bf16_full_eval", True),
    refused("fp16_full_eval", True),
    not_tried("tf32", GPU),
    shows("activation_checkpointing", True, "layers run twice per step", run_twice),
    shows(
        "activation_checkpointing_kwargs",
        {"every_n_layers": 2},
        "half the layers run twice",
        half_the_layers,
        **MEMORY,
    ),
    shows("gradient_checkpointing", True, "as `activation_checkpointing`", run_twice),
    shows(
        "gradient_checkpointing_kwargs", {"every_n_layers": 2}, "half the layers run twice", half_the_layers, **MEMORY
    ),
    not_tried("use_liger_kernel", "needs a GPU, and Liger"),
    not_tried("liger_kernel_config", "needs a GPU, and Liger"),
    shows("use_cache", True, "the model's configuration in training", lambda run, _: run.watch.cache == {True}),
    shows(
        "neftune_noise_alpha",
        5.0,
        "other losses of the same batches",
        lambda run, base: run.ids == base.ids and run.logs[0]["retain_loss"] != base.logs[0]["retain_loss"],
    ),
    refused("auto_find_batch_size", True),
    # Logs
    shows("logging_strategy", "no", "no logs of steps", lambda run, _: run.logs == []),
    shows("logging_steps", 2, "steps with a log", lambda run, _: [logs["step"] for logs in run.logs] == [2, 4]),
    shows(
        "logging_first_step",
        True,
        "steps with a log",
        lambda run, _: [logs["step"] for logs in run.logs] == [1, 2, 4],
        logging_steps=2,
    ),
    shows(
        "include_num_input_tokens_seen",
        "non_padding",
        "the logged number is that of the batches",
        lambda run, _: (
            run.logs[-1]["num_input_tokens_seen"]
            == sum(int(each["attention_mask"].sum()) for each in run.watch.batches)
        ),
    ),
    shows(
        "disable_tqdm",
        False,
        "a progress bar in place of printed logs",
        lambda run, _: any(
            type(each).__name__ == "ProgressCallback" for each in run.trainer.callback_handler.callbacks
        ),
    ),
    not_tried("project", "Trackio reads it"),
    not_tried("trackio_space_id", "Trackio reads it"),
    not_tried("trackio_bucket_id", "Trackio reads it"),
    not_tried("trackio_static_space_id", "Trackio reads it"),
    # Evaluation
    shows("eval_strategy", "steps", "evaluations in training", lambda run, _: evaluations(run) == [1, 2, 3, 4]),
    shows(
        "eval_steps", 2, "evaluations in training", lambda run, _: evaluations(run) == [2, 4], eval_strategy="steps"
    ),
    shows("eval_delay", 3, "evaluations in training", lambda run, _: evaluations(run) == [3, 4], **STEPWISE),
    shows(
        "per_device_eval_batch_size",
        2,
        "batches of an evaluation, at the same probabilities",
        lambda run, base: (
            run.watch.prediction_steps > base.watch.prediction_steps
            and close(run.probabilities_before, base.probabilities_before)
        ),
    ),
    shows(
        "prediction_loss_only",
        True,
        "losses are evaluated, probabilities are not",
        lambda run, _: run.probabilities == {} and "eval_forget_loss" in run.metrics["after"],
    ),
    shows("eval_on_start", True, "an evaluation at step 0 of training", lambda run, _: evaluations(run) == [0]),
    shows(
        "eval_do_concat_batches",
        False,
        "the same probabilities, from a list of batches",
        lambda run, base: run.probabilities == base.probabilities,
        per_device_eval_batch_size=2,
    ),
    no_effect("eval_use_gather_object", True, "there is one process"),
    refused("batch_eval_metrics", True),
    # Checkpoints
    shows(
        "save_only_model",
        True,
        "a checkpoint without the optimizer",
        lambda run, base: base.has("checkpoint-1/optimizer.pt") and not run.has("checkpoint-1/optimizer.pt"),
        **SAVING,
    ),
    shows("save_strategy", "epoch", "checkpoints", lambda run, _: run.checkpoints() == ["checkpoint-4"]),
    shows(
        "save_steps",
        2,
        "checkpoints",
        lambda run, _: run.checkpoints() == ["checkpoint-2", "checkpoint-4"],
        save_strategy="steps",
    ),
    shows("save_total_limit", 1, "checkpoints", lambda run, _: run.checkpoints() == ["checkpoint-4"], **SAVING),
    shows(
        "load_best_model_at_end",
        True,
        "the weights at the end are those of the best checkpoint",
        lambda run, base: same(run.after, run.best_weights()) and not same(run.after, base.after),
        **BEST | {"metric_for_best_model": "retain_probability", "greater_is_better": True},
    ),
    shows(
        "metric_for_best_model",
        "eval_retain_loss",
        "the best checkpoint is another one",
        lambda run, base: run.trainer.state.best_global_step != base.trainer.state.best_global_step,
        **BEST,
    ),
    refused("metric_for_best_model", "eval_loss", **STEPWISE),
    shows(
        "greater_is_better",
        True,
        "the best checkpoint is another one",
        lambda run, base: run.trainer.state.best_global_step != base.trainer.state.best_global_step,
        **BEST,
    ),
    # Processes, data and seeds
    shows("seed", 7, OTHER_BATCHES, other_batches),
    shows("data_seed", 7, OTHER_BATCHES, other_batches),
    not_tried("use_cpu", GPU),
    shows("accelerator_config", {"use_seedable_sampler": False}, OTHER_BATCHES, other_batches),
    shows(
        "accelerator_config",
        {"gradient_accumulation_kwargs": {"num_steps": 2}},
        "batches per step",
        lambda run, _: len(run.ids) == 2 * STEPS,
    ),
    refused("accelerator_config", {"dispatch_batches": True}),
    refused("parallelism_config", ParallelismConfig(cp_size=2)),
    shows("dataloader_drop_last", True, "the odd row is left out", lambda run, _: set(run.forget_rows) == {2}),
    workers("dataloader_num_workers", 1, "the loader's workers, at the same batches", "num_workers"),
    not_tried("dataloader_pin_memory", GPU),
    workers(
        "dataloader_prefetch_factor",
        4,
        "the loader's own, at the same batches",
        "prefetch_factor",
        dataloader_num_workers=1,
    ),
    workers(
        "dataloader_multiprocessing_context",
        "forkserver",
        "the loader's own, at the same batches",
        "multiprocessing_context",
        dataloader_num_workers=1,
    ),
    workers("dataloader_in_order", False, "the loader's own", "in_order", dataloader_num_workers=1),
    refused("remove_unused_columns", True),
    refused("label_names", ["answers"]),
    shows("train_sampling_strategy", "sequential", OTHER_BATCHES, other_batches),
    refused("train_sampling_strategy", "group_by_length"),
    no_effect(
        "length_column_name", "tokens", "it is for `train_sampling_strategy='group_by_length'`, which is refused"
    ),
    refused("fsdp", "full_shard"),
    no_effect("fsdp_config", {"min_num_params": 1}, "it is for `fsdp`, which is refused"),
    not_tried("deepspeed", "needs DeepSpeed; `tests/distributed/test_deepspeed.py` tries it"),
    shows(
        "debug",
        "underflow_overflow",
        "hooks on all modules look for overflow",
        lambda run, base: len(run.model.model.norm._forward_hooks) > len(base.model.model.norm._forward_hooks),
    ),
    shows(
        "skip_memory_metrics",
        False,
        "the memory of training is among the metrics",
        lambda run, _: "train_mem_cpu_peaked_delta" in run.metrics["train"],
    ),
    no_effect("do_train", True, SCRIPTS),
    no_effect("do_eval", True, SCRIPTS),
    no_effect("do_predict", True, SCRIPTS),
    no_effect("resume_from_checkpoint", "folder", SCRIPTS + ", and `r2f unlearn` reads it"),
    no_effect("local_rank", 0, "Trainer does not read it: the launcher says it"),
]
