"""R2FTrainer: forget and retain data in, an unlearned model out."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import broadcast, broadcast_object_list
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerState,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, rotate_checkpoints

from .callback import R2FCallback
from .config import R2FConfig
from .data.rows import Row, content_hash
from .distributed import gather, whole_shape
from .distributed.deepspeed import check_precision, check_zero
from .models.checks import check_model
from .models.loading import from_pretrained
from .models.wrapping import wrap
from .probes import find_probes
from .probes.lora_probe import DELTA, PROBE
from .runs.checkpoints import checkpoints, find_damage, last_whole_checkpoint, seal
from .runs.files import write_json, write_text
from .runs.folder import RUN_FILE, check_other_runs, check_output_folder, held, run_differences, run_folder_lock
from .runs.record import RunRecord, read_ledger_of
from .runs.undo import keep_original
from .runs.weights import load_result_, result_state, save_result, weights_hash
from .training.forget_retain_trainer import ForgetRetainTrainer
from .training.references import reference_inputs
from .updates import RetainedInputs


logger = logging.getLogger(__name__)

REFERENCES_FILE = "r2f_references.safetensors"
# What each module's retained inputs are called there.
DIRECTIONS, SPARED = "retained_inputs.directions.", "retained_inputs.spared."
PROGRESS_FILE = "r2f_progress.json"

# What has to be the same for a checkpoint to be a part of the same run.
RUN_KEYS = (
    "seed",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "max_grad_norm",
    "data_seed",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "rank",
    "update_target",
    "adapter_rank",
    "target_modules",
    "exclude_modules",
    "decoder",
    "held_out",
    "warm_probes",
    "min_fidelity",
    "on_low_fidelity",
    "forget_objective",
    "retain_objective",
    "beta",
    "gamma",
    "forget_weight",
    "retain_weight",
    "retain_per_forget",
    "num_views",
    "adaptive",
    "spare_retained",
    "normalize_update",
)


class R2FTrainer(ForgetRetainTrainer):
    r"""
    Trainer for Recover-to-Forget (R2F, arXiv 2512.07374): unlearns a forget set while holding a retain set.

    The model is wrapped in a LoRA adapter that serves as a probe of the full gradient; [`R2FCallback`] decodes the
    probe's gradients after each step and writes the model's own weights. What is saved is the plain model; in memory
    `trainer.model.unload()` is. (With `update_target="adapter"` what is saved is the adapter, to be loaded onto the
    model; unloading would throw it away.)

    Example:

    ```python
    from r2f_hf import R2FConfig, R2FTrainer

    trainer = R2FTrainer(
        model="my-finetuned-model",
        args=R2FConfig(output_dir="unlearned", max_steps=20),
        forget_dataset=forget_rows,
        retain_dataset=retain_rows,
    )
    trainer.train()
    trainer.save_model()
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]):
            A causal language model, or where to load it from. Its weights are changed in place; with
            `update_target="adapter"` they are not, and it may be quantised or a [`~peft.PeftModel`].
        args ([`R2FConfig`], *optional*):
            Configuration. Defaults to `R2FConfig(f"{model_name}-R2F")`.
        forget_dataset ([`~datasets.Dataset`] or `Sequence[Mapping]`):
            Rows to forget, with the columns that `args` names.
        retain_dataset ([`~datasets.Dataset`] or `Sequence[Mapping]`, *optional*):
            Rows to keep. Needed unless `retain_objective="none"`.
        holdout_dataset ([`~datasets.Dataset`] or `Sequence[Mapping]`, *optional*):
            Rows like the forget set's that the model never saw. With it, training stops when the forget set cannot be
            told from them and the retain set is kept; `stop_reason` then says by which criterion.
        eval_dataset ([`~datasets.Dataset`] or `dict`, *optional*):
            Rows to evaluate on instead of the forget, retain and holdout sets.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer. Defaults to the model's own.
        compute_metrics (`Callable`, *optional*):
            As in [`~transformers.Trainer`], on logits. Defaults to the mean length-normalised probability of the
            completions, reported as `eval_forget_probability` and so on.
        callbacks (`list[TrainerCallback]`, *optional*):
            Further callbacks.
        optimizers (`tuple`, *optional*, defaults to `(None, None)`):
            As in [`~transformers.Trainer`]. The optimizer moves the probes, which are drawn anew after each step; its
            learning rate is the norm of a step in each module.
        preprocess_logits_for_metrics (`Callable`, *optional*):
            As in [`~transformers.Trainer`]; used with `compute_metrics`.

    Raises:
        `ValueError`: For data, a model or a configuration that cannot work, before any weight changes.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: R2FConfig | None = None,
        forget_dataset: Dataset | Sequence[Row] | None = None,
        retain_dataset: Dataset | Sequence[Row] | None = None,
        holdout_dataset: Dataset | Sequence[Row] | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None = None,
    ):
        if isinstance(model, str):
            model = from_pretrained(model)
        if args is None:
            args = R2FConfig(f"{model.config._name_or_path.split('/')[-1]}-R2F")
        check_model(model, args)
        self._delta = DELTA if args.update_target == "adapter" else None
        if args.weight_decay:
            raise ValueError(
                "`weight_decay` would act on the probes, which are drawn anew after each step, and not on the model's "
                "weights. Leave it at 0."
            )
        if args.label_smoothing_factor:
            raise ValueError("`label_smoothing_factor` is no part of the forget and retain losses. Leave it at 0.")
        size = sum(whole_shape(parameter).numel() * parameter.element_size() for parameter in model.parameters())
        check_output_folder(args.output_dir, size * (1 + args.keep_original) if self._delta is None else 0)
        # Trainer refuses to save the optimizer of a model that is sharded; the probes' own is whole on every process.
        self._sharded = getattr(model, "is_distributed_loading_by_transformers", False)
        save_only_model, args.save_only_model = args.save_only_model, args.save_only_model or self._sharded
        try:
            super().__init__(
                model=model,
                args=args,
                forget_dataset=forget_dataset,
                retain_dataset=retain_dataset,
                holdout_dataset=holdout_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                compute_metrics=compute_metrics,
                callbacks=callbacks,
                optimizers=optimizers,
                preprocess_logits_for_metrics=preprocess_logits_for_metrics,
            )
        finally:
            args.save_only_model = save_only_model
        if self.is_fsdp_enabled or args.fsdp:
            raise ValueError(
                "accelerate's FSDP would shard the probes too, which every process needs whole. Launch without it, "
                "and shard the weights alone by loading the model with `distributed_config="
                "DistributedConfig(fsdp_size=...)`, from `transformers.distributed`. (`r2f unlearn` does so itself "
                "where `accelerate launch` asks for FSDP.)"
            )
        if self.is_deepspeed_enabled:
            check_zero(self.accelerator.state.deepspeed_plugin.deepspeed_config, self._delta is not None)
            check_precision(model)
            self._sharded = True
        known = torch.backends.mkldnn.is_available()
        if args.bf16 and args.device.type == "cpu" and known and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            logger.warning(
                "This CPU has no arithmetic for bf16: with `bf16=True` steps take a hundred times as long as without."
            )
        self.r2f_callback = R2FCallback(
            decoder=args.decoder,
            seed=args.seed,
            held_out=args.held_out,
            warm_probes=args.warm_probes,
            min_fidelity=args.min_fidelity,
            on_low_fidelity=args.on_low_fidelity,
            adaptive=args.adaptive,
            normalize=args.normalize_update,
            on_nonfinite=args.on_nonfinite,
            delta=self._delta,
            save_full_model=False,
        )
        self.add_callback(self.r2f_callback)
        views = [view["input_ids"] for views in self.train_examples["forget"] for view in views]
        retain = [example["input_ids"] for example in self.train_examples["retain"]]
        holdout = [example["input_ids"] for example in self.reference_examples["holdout"]]
        self.run_description = {key: getattr(args, key) for key in RUN_KEYS} | {
            "data": content_hash([views, retain, holdout]),
            "processes": args.world_size,
        }
        columns = [column for column in (args.prompt_column, args.completion_column) if column is not None]
        name = model.config._name_or_path
        # The folder that the model comes from.
        self.source = Path(name).resolve() if name and Path(name).is_dir() else None
        if self._delta is not None:
            if self.source == Path(args.output_dir).resolve():
                raise ValueError(
                    f"The output folder {args.output_dir} is the model's own: the adapter would be mixed up with it. "
                    "Choose another `output_dir`."
                )
            # What it is stacked on is never written, but it is a part of the run.
            base = self.accelerator.unwrap_model(self.model).state_dict()
            ours = (f".{PROBE}.", f".{DELTA}.")
            kept = {key: tensor for key, tensor in base.items() if not any(part in key for part in ours)}
            self.run_description["base"] = weights_hash(kept)
        self.record = RunRecord(
            rows=[[str(row[column]) for column in columns] for row in forget_dataset],
            recipe={key: value for key, value in self.run_description.items() if key != "data"}
            | {"max_steps": args.max_steps, "num_train_epochs": args.num_train_epochs},
            # An adapter has a ledger of its own.
            earlier=read_ledger_of(self.source if self._delta is None else None),
        )
        self._lock = run_folder_lock(args.output_dir)
        self._saving_checkpoint = False

    def _prepare_model(self, model: PreTrainedModel, args: R2FConfig) -> PeftModel:
        return wrap(model, args)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs) -> TrainOutput:
        """
        Unlearn. See [`~transformers.Trainer.train`] for the arguments.

        With `resume_from_checkpoint=True` it goes on from the latest checkpoint that is whole, or begins anew where
        there is none: the same command can be repeated until it is done, whatever stopped it.

        Returns:
            [`~transformers.trainer_utils.TrainOutput`]: Its `metrics` also hold `steps`, `skipped_steps` and, where
            rows are held out, `fidelity`: the estimated cosine to the full gradient, mean over modules and steps.

        Raises:
            `ValueError`: Before any weight changes: if another run is writing to the output folder, or has written to
            it; if the checkpoint is damaged or belongs to a run with another configuration.
        """
        with self.locked():
            if resume_from_checkpoint is True:
                resume_from_checkpoint = self._find_checkpoint()
            if resume_from_checkpoint and self._is_finished(Path(resume_from_checkpoint)):
                output = self._reload(Path(resume_from_checkpoint))
            else:
                if not resume_from_checkpoint:
                    self._begin()
                elif self.is_deepspeed_enabled:
                    # Trainer leaves this to DeepSpeed, which saves the probes alone.
                    self._load_from_checkpoint(resume_from_checkpoint)
                output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        output.metrics.update(self.r2f_callback.summary(), steps=self.state.global_step)
        self.record.metrics |= {"train": output.metrics | {"stop_reason": self.stop_reason}, "after": {}}
        return output

    def _compute_references(self) -> dict[str, Tensor]:
        references = super()._compute_references()
        if self.args.spare_retained:
            probes = find_probes(self.accelerator.unwrap_model(self.model), self._delta)
            with self.accelerator.autocast():
                found = reference_inputs(
                    self.model,
                    {probe.name: probe.layer for probe in probes},
                    self.train_examples["retain"],
                    self.data_collator,
                    self.args.per_device_eval_batch_size,
                    self.args.seed,
                    desc="Inputs of the retain set",
                    disable=self.args.disable_tqdm or not self.is_world_process_zero(),
                )
            for name, inputs in found.items():
                # Devices may round otherwise, and all processes write one update.
                directions, spared = broadcast([inputs.directions.contiguous(), inputs.spared])
                references |= {f"{DIRECTIONS}{name}": directions.cpu(), f"{SPARED}{name}": spared.cpu()}
        return references

    def _set_references(self, references: dict[str, Tensor]) -> None:
        # What the callback has is held there alone.
        super()._set_references(
            {key: each for key, each in references.items() if not key.startswith((DIRECTIONS, SPARED))}
        )
        names = [key.removeprefix(DIRECTIONS) for key in references if key.startswith(DIRECTIONS)]
        self.r2f_callback.retained_inputs = {
            name: RetainedInputs(references[f"{DIRECTIONS}{name}"], references[f"{SPARED}{name}"]) for name in names
        } or None

    def _begin(self) -> None:
        """What a run does before its first step, and not when it is resumed."""
        args, model = self.args, self.accelerator.unwrap_model(self.model)
        weights = self._weights_hash()
        # What this trainer has written before is its own.
        if not args.overwrite_output_dir and self.record.hash_before is None:
            check_other_runs(args.output_dir, self.run_description | {"weights_before": weights}, self.source)
        self.accelerator.wait_for_everyone()
        self.record.begin(args.output_dir, weights)
        self.stop_reason = None
        original = {}
        if args.keep_original and self._delta is None:
            written = {f"{probe.name}.weight": probe.weight for probe in find_probes(model)}
            original = gather(written, keep=args.should_save)
        if not args.should_save:
            return
        # Or they could be resumed from, in place of this run's.
        for folder in checkpoints(args.output_dir):
            if (folder / RUN_FILE).is_file() and folder.resolve() != self.source:
                shutil.rmtree(folder)
        if original:
            keep_original(args.output_dir, original, weights)

    def _weights_hash(self) -> str:
        """Of all that the run changes."""
        return weights_hash(result_state(self.accelerator.unwrap_model(self.model), self._delta))

    def _find_checkpoint(self) -> str | None:
        """The latest whole checkpoint in the output folder, the same on all processes."""
        folder = self.args.output_dir
        found = [None]
        if self.is_world_process_zero():
            latest = last_whole_checkpoint(folder)
            if latest is None:
                logger.warning("There is no whole checkpoint in %s: beginning anew.", folder)
            elif self.args.overwrite_output_dir and run_differences(latest, self.run_description):
                logger.warning("The checkpoints in %s are another run's: beginning anew.", folder)
                latest = None
            found = [latest and str(latest)]
        return broadcast_object_list(found)[0]

    def _is_finished(self, folder: Path) -> bool:
        """Whether a checkpoint was saved at the end of its run. Trainer would take further steps from there."""
        file = folder / PROGRESS_FILE
        if not file.is_file() or find_damage(folder) is not None:
            return False
        step = TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME)).global_step
        progress = json.loads(file.read_text())
        if self.args.max_steps > 0:
            return progress["stopped"] or step >= self.args.max_steps
        same = progress["num_train_epochs"] == self.args.num_train_epochs
        return progress["stopped"] or (same and step >= progress["max_steps"])

    def _reload(self, folder: Path) -> TrainOutput:
        """Be as training was at its end."""
        self._load_from_checkpoint(str(folder))
        self.state = TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))
        self.state.is_local_process_zero = self.is_local_process_zero()
        self.state.is_world_process_zero = self.is_world_process_zero()
        logger.warning("%s is the end of the run: nothing is left to train.", folder)
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()
        losses = [logs["loss"] for logs in self.state.log_history if "loss" in logs]
        return TrainOutput(self.state.global_step, fmean(losses) if losses else math.nan, {"train_runtime": 0.0})

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Evaluate. See [`~transformers.Trainer.evaluate`]. The ledger keeps the last metrics before and after."""
        metrics = super().evaluate(*args, **kwargs)
        if not self.is_in_train:
            self.record.add_evaluation(metrics)
        return metrics

    def locked(self) -> AbstractContextManager:
        """
        Keep other runs out of the output folder. Training and saving do so themselves; hold it around both, so that no
        one comes in between.

        Raises:
            `ValueError`: If another run is writing there.
        """
        # One process holds it for all.
        return held(self._lock) if self.args.should_save else nullcontext()

    def create_optimizer(self, *args, **kwargs) -> torch.optim.Optimizer:
        """The optimizer of the probes, and of nothing else: PEFT makes what it enables trainable at many a turn."""
        for name, parameter in self.accelerator.unwrap_model(self.model).named_parameters():
            parameter.requires_grad_(f".{PROBE}." in name)
        return super().create_optimizer(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log `logs`; training logs also carry the losses' parts and the reconstruction's fidelity."""
        if "loss" in logs:
            # Here and not in the callback's `on_log`, which the trackers' own may precede.
            logs |= self.r2f_callback.pop_logs()
        super().log(logs, start_time)

    # Saving and loading

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """
        Save the plain model (or the adapter that took the updates), the tokenizer and, after training, the ledger:
        that of the model which training began with and one entry more. See [`~transformers.Trainer.save_model`].
        """
        folder = Path(output_dir or self.args.output_dir)
        if self._saving_checkpoint:
            self._save_model(output_dir, _internal_call)
            return
        own = folder.resolve() == Path(self.args.output_dir).resolve()
        with self.locked() if own or not self.args.should_save else held(run_folder_lock(folder)):
            if self.record.hash_before is not None and (self.args.should_save or self._sharded):
                weights = self._weights_hash()
                if self.args.should_save:
                    # Before the weights: in a ledger that is ahead of them the same run is found again, and not taken
                    # for one more.
                    self.record.write(folder, weights, {"steps": self.state.global_step})
            self._save_model(output_dir, _internal_call)

    def _save_model(self, output_dir: str | None, _internal_call: bool) -> None:
        # Or Trainer would gather DeepSpeed's weights on top of what `_save` does, and need an engine.
        enabled, self.is_deepspeed_enabled = self.is_deepspeed_enabled, False
        try:
            super().save_model(output_dir, _internal_call)
        finally:
            self.is_deepspeed_enabled = enabled

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        folder, write = Path(output_dir or self.args.output_dir), self.args.should_save
        save_result(self.accelerator.unwrap_model(self.model), folder, self._delta, write)
        if not write:
            return
        self.processing_class.save_pretrained(folder)
        write_json(folder / RUN_FILE, self.run_description | {"weights_before": self.record.hash_before})

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run_folder = Path(self._get_output_dir(trial))
        folder = run_folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            # What an interrupted save has left.
            shutil.rmtree(folder, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        # Trainer deletes old checkpoints here, before the new one is whole.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        self._saving_checkpoint = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
            self._saving_checkpoint = False
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self.r2f_callback.save_subspaces(folder)
            references = dict(self._references)
            for name, inputs in (self.r2f_callback.retained_inputs or {}).items():
                references |= {f"{DIRECTIONS}{name}": inputs.directions.cpu(), f"{SPARED}{name}": inputs.spared.cpu()}
            if references:
                # Several modules may share theirs, which a file cannot.
                apart = {key: each.clone(memory_format=torch.contiguous_format) for key, each in references.items()}
                save_file(apart, folder / REFERENCES_FILE)
            # Not where a callback of the user's ends the training: it may be a deadline, after which the run goes on.
            stoppers = [each for each in self.callback_handler.callbacks if isinstance(each, EarlyStoppingCallback)]
            early = any(each.early_stopping_patience_counter >= each.early_stopping_patience for each in stoppers)
            progress = {
                "stopped": early or self.stop_reason is not None or self.r2f_callback.stopped,
                "stop_reason": self.stop_reason,
                "max_steps": self.state.max_steps,
                "num_train_epochs": self.args.num_train_epochs,
                "skipped_steps": self.r2f_callback.skipped_steps,
                "fidelities": self.r2f_callback.fidelities,
                "before": self.record.metrics.get("before", {}),
            }
            write_text(folder / PROGRESS_FILE, json.dumps(progress))
            seal(folder)
            rotate_checkpoints(str(run_folder), limit, self.state.best_model_checkpoint, use_mtime=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        if not (folder / RUN_FILE).is_file():
            raise ValueError(f"{folder} is not a checkpoint of R2FTrainer (it has no {RUN_FILE}).")
        damage = find_damage(folder)
        if damage is not None:
            raise ValueError(
                f"{folder} cannot be resumed from: {damage}. With `resume_from_checkpoint=True` the latest whole "
                "checkpoint is found."
            )
        changed = run_differences(folder, self.run_description)
        if changed:
            raise ValueError(
                f"{folder} belongs to a run with another configuration: {'; '.join(changed)}. Resume with the old "
                "settings, or start a new run in another `output_dir`."
            )
        before = json.loads((folder / RUN_FILE).read_text())["weights_before"]
        inside = self.source is not None and self.source.is_relative_to(Path(self.args.output_dir).resolve())
        # This trainer's own run has changed its weights already.
        if not inside and self.record.hash_before != before and self._weights_hash() != before:
            raise ValueError(
                f"{folder} belongs to a run on another model: its weights were others before it began. Resume with "
                "that model, or start a new run in another `output_dir`."
            )
        progress = json.loads((folder / PROGRESS_FILE).read_text())
        self.record.hash_before, self.record.metrics = before, {"before": progress["before"]}
        self.stop_reason = progress["stop_reason"]
        self.r2f_callback.skipped_steps = progress["skipped_steps"]
        self.r2f_callback.fidelities = progress["fidelities"]
        references = folder / REFERENCES_FILE
        self._set_references(load_file(references) if references.is_file() else {})
        load_result_(self.model, folder, self._delta)
        self.r2f_callback.resume_folder = folder

    def _load_best_model(self) -> None:
        logger.info("Loading the best model from %s.", self.state.best_model_checkpoint)
        damage = find_damage(self.state.best_model_checkpoint)
        if damage is not None:
            raise ValueError(f"The best model, {self.state.best_model_checkpoint}, cannot be loaded: {damage}.")
        load_result_(self.model, self.state.best_model_checkpoint, self._delta)
