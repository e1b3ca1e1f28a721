"""Fields of TrainingArguments that take more than one run, or a stand-in, to show: for training_arguments.py."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import transformers
from huggingface_hub.utils import filter_repo_objects
from transformers import EarlyStoppingCallback, EvalPrediction, TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_pt_utils import EvalLoopContainer

from r2f_hf.runs.checkpoints import last_whole_checkpoint
from shared.arguments_cases import HONOURED, STEPWISE, Case, not_tried, refused
from shared.arguments_run import STEPS, Bench, Run, WatchedTrainer, same
from shared.faults_worker import build_data


SAVING = {"save_strategy": "steps", "save_steps": 2}


def special(name: str, value: Any, how: str, check: Callable[..., bool], **settings: Any) -> Case:
    """A check with runs of its own, which gets the bench and all settings."""
    return Case(name, value, HONOURED, how, lambda bench: bool(check(bench, **settings | {name: value})), settings)


# Compiled, deterministic, on a device


def empties_the_cache(bench: Bench, **settings: Any) -> bool:
    with patch("transformers.trainer.clear_device_cache") as empty:
        bench.run(**settings)
    return empty.call_count == STEPS // 2


def compiles(bench: Bench, **settings: Any) -> bool:
    torch._dynamo.reset()
    graphs = torch._dynamo.utils.counters["stats"]
    graphs.clear()
    run = bench.run(**settings)
    found, base = graphs["unique_graphs"], bench.base()
    torch._dynamo.reset()
    return found > 0 and run.ids == base.ids


def is_deterministic(bench: Bench, **settings: Any) -> bool:
    variables = dict(os.environ)
    try:
        run = bench.run(**settings)
        return torch.are_deterministic_algorithms_enabled() and same(run.after, bench.base().after)
    finally:
        torch.use_deterministic_algorithms(False)
        os.environ.clear()
        os.environ.update(variables)


# Logs


class StandInTracker(TrainerCallback):
    """Takes logs as a tracker does."""

    logs: tuple[dict[str, float], ...] = ()
    names: tuple[str, ...] = ()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        type(self).names += (args.run_name,)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        type(self).logs += (dict(logs),)


def reports(bench: Bench, **settings: Any) -> bool:
    tracker = type("Tracker", (StandInTracker,), {})
    with patch.dict(INTEGRATION_TO_CALLBACK, {"stand-in": tracker}):
        run = bench.run(**settings)
    steps = [logs for logs in tracker.logs if "loss" in logs]
    named = tracker.names == (settings.get("run_name"),)
    return named and len(steps) == STEPS and all("r2f/fidelity" in logs for logs in steps) and run.steps == STEPS


def sets_the_level(bench: Bench, **settings: Any) -> bool:
    before = transformers.logging.get_verbosity()
    try:
        bench.run(**settings)
        return transformers.logging.get_verbosity() == transformers.logging.CRITICAL
    finally:
        transformers.logging.set_verbosity(before)


def lets_nan_through(bench: Bench, **settings: Any) -> bool:
    def prepare(trainer: WatchedTrainer) -> None:
        trainer.nan_step = 2

    runs = [bench.run(prepare=prepare, **settings | more) for more in ({}, {"logging_nan_inf_filter": True})]
    return [math.isnan(run.logs[2]["loss"]) for run in runs] == [True, False]


# Evaluation


def gets_inputs_and_losses(bench: Bench, **settings: Any) -> bool:
    found: list[EvalPrediction] = []

    def metric(prediction: EvalPrediction) -> dict[str, float]:
        found.append(prediction)
        return {"mine": 1.0}

    run = bench.run(data={"compute_metrics": metric}, **settings)
    complete = all(each.inputs is not None and each.losses is not None for each in found)
    return complete and run.metrics["after"]["eval_forget_mine"] == 1.0


def computes_by_batch(bench: Bench, **settings: Any) -> bool:
    calls: list[bool] = []

    def metric(prediction: EvalPrediction, compute_result: bool) -> dict[str, float]:
        calls.append(compute_result)
        return {"batches": float(len(calls))} if compute_result else {}

    run = bench.run(data={"compute_metrics": metric}, **settings)
    return calls.count(False) > 0 and run.metrics["after"]["eval_retain_batches"] == len(calls)


def moves_predictions(bench: Bench, **settings: Any) -> bool:
    moved = []
    original = EvalLoopContainer.to_cpu_and_numpy

    def count(self: EvalLoopContainer) -> None:
        moved.append(self.tensors is not None)
        original(self)

    with patch.object(EvalLoopContainer, "to_cpu_and_numpy", count):
        run = bench.run(**settings)
    base = bench.base(per_device_eval_batch_size=2)
    # Once per batch for the losses, the predictions and the labels.
    return sum(moved) >= 3 * run.watch.prediction_steps and run.probabilities == base.probabilities


def keeps_workers(bench: Bench, **settings: Any) -> bool:
    data = build_data()
    rows = {"first": data["forget_dataset"][:3], "second": data["retain_dataset"][:3]}
    found: list[float] = []

    def prepare(trainer: WatchedTrainer) -> None:
        both = trainer.evaluate(rows)
        found.extend(both[f"eval_{name}_probability"] for name in rows)
        found.extend(trainer.evaluate(each)["eval_probability"] for each in rows.values())

    run = bench.run(prepare=prepare, **settings)
    loader = run.trainer.callback_handler.train_dataloader
    own_rows = found[:2] == found[2:] and found[0] != found[1]
    return own_rows and loader.persistent_workers and same(run.after, bench.base().after)


# Checkpoints


def interrupted(bench: Bench, **settings: Any) -> tuple[Run, Run]:
    """A whole run, and one that goes on from the first of its two checkpoints with these settings."""
    more = {key: settings[key] for key in STEPWISE.keys() & settings.keys()}
    callbacks = settings.pop("callbacks", lambda: [])
    whole = bench.run(data={"callbacks": callbacks()}, **SAVING | more | settings.pop("first", {}))
    # The run is at its end, and goes on from the middle all the same.
    checkpoint = str(whole.folder / "checkpoint-2")
    resumed = bench.run(
        folder=whole.folder, resume=checkpoint, data={"callbacks": callbacks()}, **SAVING | more | settings
    )
    return whole, resumed


def begins_the_epoch_anew(bench: Bench, **settings: Any) -> bool:
    whole, resumed = interrupted(bench, **settings)
    _, exact = interrupted(bench)
    return exact.ids == whole.ids[2:] and same(exact.after, whole.after) and resumed.ids == whole.ids[:2]


def restores_callbacks(bench: Bench, **settings: Any) -> bool:
    patience = iter((50, 99))
    common = STEPWISE | {"metric_for_best_model": "forget_probability", "greater_is_better": False}
    _, resumed = interrupted(
        bench, callbacks=lambda: [EarlyStoppingCallback(next(patience))], first=common, **settings | common
    )
    callbacks = resumed.trainer.callback_handler.callbacks
    return [each.early_stopping_patience for each in callbacks if isinstance(each, EarlyStoppingCallback)] == [50]


class Terminate(TrainerCallback):
    """Sends this process SIGTERM at a step, as a scheduler does."""

    trainer: WatchedTrainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            callbacks = self.trainer.callback_handler.callbacks
            manager = next(each.jit_manager for each in callbacks if hasattr(each, "jit_manager"))
            manager.kill_wait = 0
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)


def saves_on_sigterm(bench: Bench, **settings: Any) -> bool:
    terminate = Terminate()

    def prepare(trainer: WatchedTrainer) -> None:
        terminate.trainer = trainer

    cut = bench.run(data={"callbacks": [terminate]}, prepare=prepare, **settings)
    whole = last_whole_checkpoint(cut.folder)
    resumed = bench.run(folder=cut.folder, resume=True)
    return whole is not None and cut.steps < STEPS == resumed.steps and same(resumed.after, bench.base().after)


def saves_the_best(bench: Bench, **settings: Any) -> bool:
    common = STEPWISE | {"metric_for_best_model": "retain_probability", "greater_is_better": True}
    run = bench.run(**common | settings)
    return run.checkpoints()[-1:] == [f"checkpoint-{run.trainer.state.best_global_step}"]


# The Hub


class Uploading(Future):
    """An upload that is in progress whenever the next one is due, and ends once it is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.set_result(None)

    def done(self) -> bool:
        return False


class StandInHub:
    """Keeps what it is asked to create and to upload."""

    def __init__(self) -> None:
        self.created: dict[str, Any] = {}
        self.uploads: list[dict[str, Any]] = []

    def create_repo(self, name: str, **kwargs: Any) -> Any:
        self.created = kwargs | {"name": name}
        return SimpleNamespace(repo_id=name)

    def upload_folder(self, folder_path: str, ignore_patterns: list[str] | None = None, **kwargs: Any) -> Any:
        files = [str(path.relative_to(folder_path)) for path in Path(folder_path).rglob("*") if path.is_file()]
        kept = set(filter_repo_objects(files, ignore_patterns=ignore_patterns))
        self.uploads.append(kwargs | {"files": kept})
        return Uploading()


def pushed(bench: Bench, **settings: Any) -> tuple[StandInHub, Run]:
    """What is uploaded in a run with two checkpoints."""
    hub = StandInHub()
    common = {"push_to_hub": True, "hub_model_id": "me/model"}
    with patch("transformers.trainer.hf_api", lambda: hub):
        return hub, bench.run(**SAVING | common | settings)


def pushes(bench: Bench, **settings: Any) -> bool:
    hub, _ = pushed(bench, **settings)
    result = {"model.safetensors", "ledger.jsonl", "tokenizer.json", "README.md"}
    known = [name for upload in hub.uploads for name in upload["files"] if name.startswith(("_undo", "checkpoint-"))]
    return result <= hub.uploads[-1]["files"] and not known


def creates(field: str) -> Callable[..., bool]:
    def check(bench: Bench, **settings: Any) -> bool:
        hub, _ = pushed(bench, **settings)
        return hub.created[field] in settings.values()

    return check


def uploads(count: int) -> Callable[..., bool]:
    return lambda bench, **settings: len(pushed(bench, **settings)[0].uploads) == count


def to_the_revision(bench: Bench, **settings: Any) -> bool:
    hub, _ = pushed(bench, **settings)
    return {upload["revision"] for upload in hub.uploads} == {settings["hub_revision"]}


HUB = "with a stand-in for the Hub"

CASES = [
    special("torch_empty_cache_steps", 2, "how often the cache is emptied", empties_the_cache),
    special("torch_compile", True, "compiled graphs, at the same batches", compiles, torch_compile_backend="eager"),
    special("torch_compile_backend", "aot_eager", "compiled graphs, at the same batches", compiles),
    not_tried("torch_compile_mode", "needs a compiler for C++ or a GPU"),
    special("full_determinism", True, "PyTorch's own switch; the weights are the same", is_deterministic),
    special("report_to", "stand-in", "a stand-in tracker gets the logs, with those of `R2FStep`", reports),
    special("run_name", "mine", "a stand-in tracker gets it", reports, report_to="stand-in"),
    special("log_level", "critical", "the level of the loggers of Transformers", sets_the_level),
    special("logging_nan_inf_filter", False, "a loss of NaN is logged as NaN", lets_nan_through),
    special("include_for_metrics", ["inputs", "loss"], "the user's metric gets both", gets_inputs_and_losses),
    special(
        "batch_eval_metrics",
        True,
        "the user's metric is called for each batch",
        computes_by_batch,
        per_device_eval_batch_size=2,
    ),
    special(
        "eval_accumulation_steps",
        1,
        "predictions leave the device after each batch",
        moves_predictions,
        per_device_eval_batch_size=2,
    ),
    special(
        "dataloader_persistent_workers",
        True,
        "the loader's own, at the same batches, and each set that is evaluated gets its own rows",
        keeps_workers,
        dataloader_num_workers=1,
    ),
    special("save_strategy", "best", "the last checkpoint is the best", saves_the_best),
    special("enable_jit_checkpoint", True, "SIGTERM leaves a checkpoint, which resumes exactly", saves_on_sigterm),
    special("ignore_data_skip", True, "a resumed run begins its epoch anew", begins_the_epoch_anew),
    special(
        "restore_callback_states_from_checkpoint",
        True,
        "the patience of an `EarlyStoppingCallback` is that of the checkpoint",
        restores_callbacks,
    ),
    special("push_to_hub", True, "the result and its ledger are uploaded, `_undo` is not, " + HUB, pushes),
    special("hub_model_id", "me/other", "the name of the repository, " + HUB, creates("name")),
    special("hub_token", "token", "the token, " + HUB, creates("token")),
    special("hub_private_repo", True, "whether the repository is private, " + HUB, creates("private")),
    special("hub_strategy", "end", "the number of uploads, " + HUB, uploads(1)),
    refused("hub_strategy", "checkpoint", push_to_hub=True),
    special("hub_always_push", True, "the number of uploads while one is in progress, " + HUB, uploads(3)),
    special("hub_revision", "branch", "the revision, " + HUB, to_the_revision),
]
