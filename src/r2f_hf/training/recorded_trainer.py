"""RecordedTrainer: a run that can be resumed, checked and undone."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import fmean
from typing import Any

from accelerate.utils import broadcast_object_list
from datasets import Dataset
from torch import Tensor, nn
from transformers import EarlyStoppingCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, rotate_checkpoints

from ..data.rows import Row, content_hash
from ..distributed import gather
from ..probes import find_probes
from ..probes.lora_probe import PROBE
from ..runs.checkpoints import checkpoints, find_damage, seal
from ..runs.files import write_json
from ..runs.folder import RUN_FILE, check_other_runs, held, read_run, run_folder_lock
from ..runs.record import RunRecord, read_ledger_of
from ..runs.resuming import (
    RUN_KEYS,
    Progress,
    check_checkpoint,
    find_checkpoint,
    is_finished,
    load_references,
    read_trainer_state,
    save_references,
)
from ..runs.undo import keep_original
from ..runs.weights import weights_hash
from ..updates.retained_inputs import to_state
from ..updates.targets import Target
from .forget_retain_trainer import ForgetRetainTrainer


logger = logging.getLogger(__name__)


class RecordedTrainer(ForgetRetainTrainer):
    """
    What a run leaves on the disk: whole checkpoints, the result, its ledger, and the weights from before.

    [`R2FTrainer`] adds the method itself: a `target` that takes the updates, and a callback `r2f_callback` whose state
    goes into the checkpoints. A model is wrapped in adapters; what is saved is what the target makes of it.
    """

    target: Target

    def begin_record(self, name: str, forget_dataset: Dataset | Sequence[Row]) -> None:
        """
        Describe the run, for its checkpoints and its ledger.

        Args:
            name (`str`):
                Name or folder of the model.
            forget_dataset (`Dataset` or `Sequence[Mapping]`):
                The rows to forget.

        Raises:
            `ValueError`: If an adapter would be saved into the folder of its own base model.
        """
        args, own_weights = self.args, self.target.adapter is None
        sets = (self.splits.views, self.splits.retain, self.splits.holdout)
        self.run_description = {key: getattr(args, key) for key in RUN_KEYS} | {
            "data": content_hash([[example["input_ids"] for example in examples] for examples in sets]),
            "processes": args.world_size,
        }
        columns = [column for column in (args.prompt_column, args.completion_column) if column is not None]
        # The folder that the model comes from.
        self.source = Path(name).resolve() if name and Path(name).is_dir() else None
        if not own_weights:
            if self.source == Path(args.output_dir).resolve():
                raise ValueError(
                    f"The output folder {args.output_dir} is the model's own: the adapter would be mixed up with it. "
                    "Choose another `output_dir`."
                )
            # What it is stacked on is never written, but it is a part of the run.
            base = self.accelerator.unwrap_model(self.model).state_dict()
            ours = (f".{PROBE}.", f".{self.target.adapter}.")
            kept = {key: tensor for key, tensor in base.items() if not any(part in key for part in ours)}
            self.run_description["base"] = weights_hash(kept)
        self.record = RunRecord(
            rows=[[str(row[column]) for column in columns] for row in forget_dataset],
            recipe={key: value for key, value in self.run_description.items() if key != "data"}
            | {"max_steps": args.max_steps, "num_train_epochs": args.num_train_epochs},
            # An adapter has a ledger of its own.
            earlier=read_ledger_of(self.source if own_weights else None),
        )
        self._lock = run_folder_lock(args.output_dir)
        self._saving_checkpoint = False

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
            if resume_from_checkpoint and is_finished(Path(resume_from_checkpoint), self.args):
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

    def unlearn(self, resume_from_checkpoint: str | bool | None = None) -> dict[str, dict[str, float]]:
        """
        Evaluate, unlearn, evaluate again, and save: the model, its tokenizer, its ledger, the metrics and the
        Trainer's state. No other run can write to the output folder in between.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                As in [`~R2FTrainer.train`].

        Returns:
            `dict[str, dict[str, float]]`: The metrics `before` and `after`, and those of the training, `train`.

        Raises:
            `ValueError`: As in [`~R2FTrainer.train`].
        """
        with self.locked():
            self.evaluate()
            output = self.train(resume_from_checkpoint=resume_from_checkpoint)
            # A run that was resumed may have begun on other weights than this call has found.
            before = self.record.metrics["before"]
            after = self.evaluate()
            self.save_model()
            self.save_state()
            self.save_metrics("train", output.metrics)
            self.save_metrics("before", before, combined=False)
            self.save_metrics("after", after, combined=False)
        return {"before": before, "train": output.metrics, "after": after}

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
        if args.keep_original and self.target.adapter is None:
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
        return weights_hash(self.target.state(self.accelerator.unwrap_model(self.model)))

    def _find_checkpoint(self) -> str | None:
        """The latest whole checkpoint in the output folder, the same on all processes."""
        found = [None]
        if self.is_world_process_zero():
            latest = find_checkpoint(self.args.output_dir, self.run_description, self.args.overwrite_output_dir)
            found = [latest and str(latest)]
        return broadcast_object_list(found)[0]

    def _reload(self, folder: Path) -> TrainOutput:
        """Be as training was at its end."""
        self._load_from_checkpoint(str(folder))
        self.state = read_trainer_state(folder)
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
        self.target.save(self.accelerator.unwrap_model(self.model), folder, write)
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
            self.r2f_callback.save_step(folder)
            save_references(folder, self.references.tensors | to_state(self.r2f_callback.step.retained_inputs or {}))
            stoppers = [each for each in self.callback_handler.callbacks if isinstance(each, EarlyStoppingCallback)]
            early = any(each.early_stopping_patience_counter >= each.early_stopping_patience for each in stoppers)
            Progress(
                stopped=early or self.stop_reason is not None,
                stop_reason=self.stop_reason,
                max_steps=self.state.max_steps,
                num_train_epochs=self.args.num_train_epochs,
                skipped_steps=self.r2f_callback.skipped_steps,
                fidelities=self.r2f_callback.fidelities,
                before=self.record.metrics.get("before", {}),
            ).write(folder)
            seal(folder)
            rotate_checkpoints(str(run_folder), limit, self.state.best_model_checkpoint, use_mtime=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        check_checkpoint(folder, self.run_description)
        before = read_run(folder)["weights_before"]
        inside = self.source is not None and self.source.is_relative_to(Path(self.args.output_dir).resolve())
        # This trainer's own run has changed its weights already.
        if not inside and self.record.hash_before != before and self._weights_hash() != before:
            raise ValueError(
                f"{folder} belongs to a run on another model: its weights were others before it began. Resume with "
                "that model, or start a new run in another `output_dir`."
            )
        progress = Progress.read(folder)
        self.record.hash_before, self.record.metrics = before, {"before": progress.before}
        self.stop_reason = progress.stop_reason
        self.r2f_callback.skipped_steps, self.r2f_callback.fidelities = progress.skipped_steps, progress.fidelities
        self._set_references(load_references(folder))
        self.target.load_(self.model, folder)
        self.r2f_callback.resume_folder = folder

    def _load_best_model(self) -> None:
        logger.info("Loading the best model from %s.", self.state.best_model_checkpoint)
        damage = find_damage(self.state.best_model_checkpoint)
        if damage is not None:
            raise ValueError(f"The best model, {self.state.best_model_checkpoint}, cannot be loaded: {damage}.")
        self.target.load_(self.model, self.state.best_model_checkpoint)
