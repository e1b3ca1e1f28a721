"""SavingTrainer: what a run writes and reads back: its result and its checkpoints, each whole or not there."""

from __future__ import annotations

import logging
import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock
from torch import Tensor, nn
from transformers import EarlyStoppingCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from ..data.second_answers import FILE as SECOND_ANSWERS_FILE
from ..data.second_answers import read_answers, write_answers
from ..runs.checkpoints import find_damage, seal
from ..runs.files import write_json, write_text
from ..runs.folder import RUN_FILE, held, read_run, run_folder_lock
from ..runs.record import RunRecord
from ..runs.resuming import (
    Progress,
    check_checkpoint,
    load_references,
    save_references,
)
from ..runs.weights import weights_hash
from ..updates.retained_inputs import to_state
from ..updates.targets import Target
from .forget_retain_trainer import ForgetRetainTrainer


logger = logging.getLogger(__name__)

# What a caller may say about the model card.
METADATA = ("language", "license", "tags", "base_model", "datasets")


class SavingTrainer(ForgetRetainTrainer):
    """
    Saving and loading, under the lock of the output folder. [`RecordedTrainer`] sets what is declared here.

    Attributes:
        target ([`WeightsTarget`] or [`AdapterTarget`]):
            What takes the updates, and so what is saved.
        record ([`~r2f_hf.runs.record.RunRecord`]):
            The run's entry in the ledger.
        run_description (`dict[str, Any]`):
            What makes two runs the same.
        source (`Path`, *optional*):
            The folder that the model was loaded from.
    """

    target: Target
    record: RunRecord
    run_description: dict[str, Any]
    source: Path | None
    _lock: FileLock
    _saving_checkpoint: bool = False
    _sharded: bool = False

    def _weights_hash(self) -> str:
        """Hash of everything that the run may change. Where weights are sharded, all processes have to call it."""
        return weights_hash(self.target.state(self.accelerator.unwrap_model(self.model)))

    def locked(self) -> AbstractContextManager:
        """
        Keep other runs out of the output folder, as a context manager.

        `train` and `save_model` lock the folder themselves. Use it around both, so that no other run can write to the
        folder in between:

        ```python
        with trainer.locked():
            trainer.train()
            trainer.save_model()
        ```

        Raises:
            `ValueError`: If another run is writing to the folder.
        """
        # The process that saves holds the lock for all processes of the run.
        return held(self._lock) if self.args.should_save else nullcontext()

    # Saving and loading

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """
        Save the plain model (or the adapter that took the updates), the tokenizer and, after training, the ledger and
        the model card.

        The ledger is that of the model that training began with, and one more entry for this run.

        Args:
            output_dir (`str`, *optional*):
                The folder to save to. Defaults to `args.output_dir`.

        Raises:
            `ValueError`: If another run is writing to the folder.
        """
        folder = Path(output_dir or self.args.output_dir)
        if self._saving_checkpoint:
            # A checkpoint has no ledger, and training holds the lock already.
            self._save_model(output_dir, _internal_call)
            return
        to_output_folder = folder.resolve() == Path(self.args.output_dir).resolve()
        # The lock of the output folder may be held already, and can be taken again. Another folder has its own lock.
        with self.locked() if to_output_folder or not self.args.should_save else held(run_folder_lock(folder)):
            # A ledger has an entry of this run only once it has begun. Sharded weights are hashed by all processes.
            if self.record.hash_before is not None and (self.args.should_save or self._sharded):
                weights = self._weights_hash()
                if self.args.should_save:
                    # The ledger is written before the weights. If the process is killed in between, the entry of this
                    # run is there already. The run is then recognised when it is repeated, and gets no second entry.
                    self.record.write(folder, weights, {"steps": self.state.global_step})
                    details = self.record.details
                    details.modules = list(self.r2f_callback.module_fidelity)
                    details.fidelity = self.r2f_callback.module_fidelities
                    details.write(folder)
            self._save_model(output_dir, _internal_call)
            if self.record.hash_before is not None and self.args.should_save:
                # Here, as it imports rich.
                from ..report.model_card import write_model_card

                # PEFT writes a card of an adapter, which this one replaces.
                write_model_card(folder)

    def create_model_card(self, model_name: str | None = None, **kwargs) -> None:
        """
        Write the model card and the report of the output folder, as `push_to_hub` does before it uploads them. Both
        have the reports of `r2f evaluate` and `r2f attack` on these weights, and neither names local files.

        Args:
            model_name (`str`, *optional*):
                Name of the model.
            kwargs (*optional*):
                As in [`~transformers.Trainer.create_model_card`]: metadata of the card, such as `license`.
        """
        if not self.is_world_process_zero():
            return
        if self.record.hash_before is None:
            super().create_model_card(model_name=model_name, **kwargs)
            return
        # Here, as they import matplotlib and rich.
        from ..report.html import write_report
        from ..report.model_card import write_model_card

        folder = Path(self.args.output_dir)
        names = {"finetuned_from": "base_model", "dataset": "datasets"}
        known = {names.get(key, key): value for key, value in kwargs.items() if names.get(key, key) in METADATA}
        write_model_card(folder, model_name, known)
        write_report([folder], folder / "report.html", public=True)

    def _save_model(self, output_dir: str | None, _internal_call: bool) -> None:
        """Trainer's own `save_model`, which calls `_save`, also under DeepSpeed."""
        # `_save` gathers the weights itself. With the flag on, Trainer would gather them a first time, and through an
        # engine that need not be there.
        enabled, self.is_deepspeed_enabled = self.is_deepspeed_enabled, False
        try:
            super().save_model(output_dir, _internal_call)
        finally:
            self.is_deepspeed_enabled = enabled

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write the weights that the target saves, the tokenizer, and the description of the run."""
        folder, write = Path(output_dir or self.args.output_dir), self.args.should_save
        self.target.save(self.accelerator.unwrap_model(self.model), folder, write)
        if not write:
            return
        self.processing_class.save_pretrained(folder)
        write_json(folder / RUN_FILE, self.run_description | {"weights_before": self.record.hash_before})

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """
        Save a checkpoint from which the run can continue as if it had never been interrupted.

        A checkpoint is a folder of many files, and the process can be killed between any two of them. So a checkpoint
        counts only once it is whole: `seal` writes the checksums of all files, last of all. A folder without them, or
        with a file that does not fit them, is never resumed from. Old checkpoints are deleted only after that.

        A checkpoint holds what Trainer saves (optimizer, scheduler, random states, `TrainerState`), and in addition

        - what `_save` writes: the weights that the target saves, the tokenizer and the description of the run;
        - the state of [`R2FStep`]: the subspaces and the mean squares of past gradients;
        - the references, which cannot be computed again once the weights have changed, and the second answers that
          the model has written;
        - what the forget objective keeps from step to step;
        - [`Progress`]: whether the run has ended, and the metrics so far.

        Args:
            model (`nn.Module`):
                The model as it is trained. Trainer passes it, and it is not used.
            trial (`optuna.Trial` or `dict[str, Any]`, *optional*):
                The trial of a hyperparameter search, which has a folder of its own.
        """
        run_folder = Path(self._get_output_dir(trial))
        folder = run_folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            # A save that was interrupted may have left files here, and `seal` would take them for the checkpoint's.
            shutil.rmtree(folder, ignore_errors=True)
        # No process may write its files before the folder is empty.
        self.accelerator.wait_for_everyone()
        # Trainer deletes old checkpoints at the end of its own method, when the new one is not whole yet. Without a
        # limit it deletes none, and `rotate_checkpoints` does it below.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        # Tells `save_model`, which Trainer calls, that this is not the result of the run.
        self._saving_checkpoint = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
            self._saving_checkpoint = False
        # Each process has written its random state. Only when all of them are done can the folder be sealed.
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self.r2f_callback.save_step(folder)
            # The losses' references are with the trainer, and the retained inputs are with the step.
            inputs = to_state(self.r2f_callback.step.retained_inputs or {})
            save_references(folder, self.references.tensors | self.objective_state() | inputs)
            if self.forget_objective.answers == "model":
                write_text(folder / SECOND_ANSWERS_FILE, write_answers(self._second_answers))
            # `EarlyStoppingCallback` does not say that it has ended the run, but its counter tells.
            callbacks = self.callback_handler.callbacks
            stoppers = [callback for callback in callbacks if isinstance(callback, EarlyStoppingCallback)]
            ended_early = any(
                stopper.early_stopping_patience_counter >= stopper.early_stopping_patience for stopper in stoppers
            )
            Progress(
                # A run that a rule has ended is at its end, though steps are left. Resuming must not take them.
                stopped=ended_early or self.stop_reason is not None,
                stop_reason=self.stop_reason,
                max_steps=self.state.max_steps,
                num_train_epochs=self.args.num_train_epochs,
                skipped_steps=self.r2f_callback.skipped_steps,
                fidelities=self.r2f_callback.fidelities,
                before=self.record.metrics.get("before", {}),
                module_fidelities=self.r2f_callback.module_fidelities,
                rows_before=self.record.details.rows.get("before", {}),
            ).write(folder)
            # Last of all: a file that changes after this counts as damaged.
            seal(folder)
            rotate_checkpoints(str(run_folder), limit, self.state.best_model_checkpoint, use_mtime=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """
        Load what [`_save_checkpoint`] saved in addition to Trainer's own files, after checking that it fits this run.

        Nothing is loaded before everything is checked: a checkpoint that is refused changes neither the model nor the
        trainer. Trainer itself loads the optimizer, the scheduler and the random states. The callback loads the state
        of [`R2FStep`] when training begins.

        Args:
            resume_from_checkpoint (`str`):
                The folder of the checkpoint.
            model (`nn.Module`, *optional*):
                Trainer passes the model here in some cases. It is not used: the target loads into `self.model`.

        Raises:
            `ValueError`: If the checkpoint is damaged, or belongs to a run with other settings, other data or another
                model.
        """
        folder = Path(resume_from_checkpoint)
        # Compares every file with its checksum, and the settings and the data with those of this run.
        check_checkpoint(folder, self.run_description)
        # The model has to fit too: the checkpoint's run must have begun on this very model. The hash of the weights is
        # compared, unless they may have changed since that run began. There are two such cases.
        before = read_run(folder)["weights_before"]
        # First, if the model was loaded from the output folder: it may be the run's own result or checkpoint.
        output_folder = Path(self.args.output_dir).resolve()
        from_output_folder = self.source is not None and self.source.is_relative_to(output_folder)
        # Second, if this trainer has begun the checkpoint's run itself, or has loaded a checkpoint of it before.
        same_run = self.record.hash_before == before
        if not from_output_folder and not same_run and self._weights_hash() != before:
            raise ValueError(
                f"{folder} belongs to a run that began with the weights of another model. Resume with that model, or "
                "start a new run in another `output_dir`."
            )
        progress = Progress.read(folder)
        # The ledger will say what was before the run's first step, and not what this process has found.
        self.record.hash_before, self.record.metrics = before, {"before": progress.before}
        # A finished run keeps the reason for its end, and a run that continues keeps counting.
        self.stop_reason = progress.stop_reason
        self.r2f_callback.skipped_steps, self.r2f_callback.fidelities = progress.skipped_steps, progress.fidelities
        self.r2f_callback.module_fidelities = progress.module_fidelities
        self.record.details.rows = {"before": progress.rows_before}
        # The references are of the model before the run, so they are loaded and not computed.
        if self.forget_objective.answers == "model":
            self._use_second_answers(read_answers(folder / SECOND_ANSWERS_FILE))
        self._set_references(load_references(folder))
        self.target.load_(self.model, folder)
        # The callback looks in the output folder by default, but the checkpoint may lie elsewhere.
        self.r2f_callback.resume_folder = folder

    def _load_best_model(self) -> None:
        """Load the weights of the best checkpoint into the model, if the checkpoint is whole."""
        logger.info("Loading the best model from %s.", self.state.best_model_checkpoint)
        damage = find_damage(self.state.best_model_checkpoint)
        if damage is not None:
            raise ValueError(f"The best model, {self.state.best_model_checkpoint}, cannot be loaded: {damage}.")
        self.target.load_(self.model, self.state.best_model_checkpoint)
