"""RecordedTrainer: a run that can be resumed, checked and undone."""

from __future__ import annotations

import logging
import math
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any

from accelerate.utils import broadcast_object_list, gather_object
from transformers.trainer_utils import TrainOutput

from ..data.rows import content_hash
from ..distributed import gather
from ..models.plain import give_back_gradients
from ..probes import find_probes
from ..probes.lora_probe import PROBE
from ..runs.checkpoints import CHECKSUMS_FILE, checkpoints
from ..runs.cost import measured_cost
from ..runs.details import Details
from ..runs.folder import RUN_FILE, check_other_runs, run_folder_lock
from ..runs.record import RunRecord, check_can_be_written, read_ledger_of
from ..runs.resuming import (
    RUN_KEYS,
    check_resumable,
    find_checkpoint,
    is_finished,
    read_trainer_state,
)
from ..runs.undo import keep_original
from ..runs.weights import check_can_be_saved, weights_hash
from .saving_trainer import SavingTrainer


logger = logging.getLogger(__name__)


class RecordedTrainer(SavingTrainer):
    """
    Keeps a record of a run on the disk: whole checkpoints, the result, its ledger, and the weights from before.

    [`R2FTrainer`] builds on it and adds the method itself. It sets two attributes that this class needs: `target`,
    which takes the updates and knows how to save them, and `r2f_callback`, whose state goes into the checkpoints.
    """

    def begin_record(self, name: str) -> None:
        """
        Describe the run, for its checkpoints and its ledger. To be called once, at the end of `__init__`.

        Args:
            name (`str`):
                Name or folder of the model.

        Raises:
            `ValueError`: If the adapter would be saved into the folder of its own base model.
        """
        args, writes_weights = self.args, self.target.adapter is None
        # A checkpoint is only resumed by a run with the same description, and a result only overwritten by one.
        self.run_description = {key: getattr(args, key) for key in RUN_KEYS} | {
            # Not the token ids: a chat template may write today's date, and the run goes on tomorrow.
            "data": content_hash([self.splits.texts, self.processing_class.chat_template]),
            "processes": args.world_size,
        }
        check_can_be_written(self.run_description)
        # The folder that the model was loaded from, unless it came from the Hub or was built in memory.
        self.source = Path(name).resolve() if name and Path(name).is_dir() else None
        if not writes_weights:
            if self.source == Path(args.output_dir).resolve():
                raise ValueError(
                    f"The output folder {args.output_dir} is the model's own: saving the adapter there would mix the "
                    "two up. Choose another `output_dir`."
                )
            # The run never changes the weights under the adapter, but on other weights it would be another run.
            state = self.accelerator.unwrap_model(self.model).state_dict()
            trainer_adapters = (f".{PROBE}.", f".{self.target.adapter}.")
            base = {key: tensor for key, tensor in state.items() if not any(part in key for part in trainer_adapters)}
            self.run_description["base"] = weights_hash(base)
        self.record = RunRecord(
            rows=self.splits.texts["forget"],
            recipe={key: value for key, value in self.run_description.items() if key != "data"}
            | {"max_steps": args.max_steps, "num_train_epochs": args.num_train_epochs},
            # A model continues the ledger of the model that it comes from. An adapter begins a ledger of its own.
            earlier=read_ledger_of(self.source if writes_weights else None),
            details=Details(
                model=name or None,
                set_sizes={name: len(own) for name, own in self.splits.texts.items() if name != "views"},
            ),
        )
        self._lock = run_folder_lock(args.output_dir)
        self._saving_checkpoint = False

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs) -> TrainOutput:
        """
        Unlearn: take the steps that the configuration asks for, or those that an interrupted run has left.

        With `resume_from_checkpoint=True` the same script can be repeated until the run is done, whatever interrupted
        it. The run continues from its latest whole checkpoint. If there is none, it begins anew. If the run is already
        at its end, the trainer only loads the result.

        The trainer locks the output folder while it trains, but it does not save the result. Call `save_model`
        afterwards, or use [`~R2FTrainer.unlearn`] instead, which also evaluates and saves.

        Example:

        ```python
        trainer.train(resume_from_checkpoint=True)
        trainer.save_model()
        ```

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                `True` continues from the latest whole checkpoint in `args.output_dir`. A `str` is the folder of one
                checkpoint to continue from. By default the run begins anew, and deletes the checkpoints that an
                earlier run has left in the output folder.
            kwargs (*optional*):
                Further arguments of [`~transformers.Trainer.train`].

        Returns:
            [`~transformers.trainer_utils.TrainOutput`]: Its `metrics` are Trainer's own and three more. These count
            from the beginning of the run, also if it was resumed:

            - `steps` (`int`): the optimizer steps;
            - `skipped_steps` (`int`): the steps that changed no weight because of a bad gradient;
            - `fidelity` (`float`), if rows are held out: the estimated cosine between the reconstructed and the full
              gradient, as a mean over modules and steps.

        Raises:
            `ValueError`: If another run is writing to the output folder; if another run has left its result or
                checkpoints there, unless `overwrite_output_dir` is set; if the checkpoint is damaged, or belongs to a
                run with other settings, other data or another model. No weight has changed then.
            `RuntimeError`: If a gradient is bad and `on_bad_gradient="stop"`. The weights are those from before this
                step.
        """
        try:
            with self.locked():
                if resume_from_checkpoint is True:
                    resume_from_checkpoint = self._find_checkpoint()
                if resume_from_checkpoint:
                    self._check_nodes(resume_from_checkpoint)
                if resume_from_checkpoint and is_finished(Path(resume_from_checkpoint), self.args):
                    output = self._reload(Path(resume_from_checkpoint))
                else:
                    if not resume_from_checkpoint:
                        self._begin()
                    elif self.is_deepspeed_enabled:
                        # Under DeepSpeed Trainer does not call this, but lets DeepSpeed load what it has saved. That
                        # is only the probes.
                        self._load_from_checkpoint(resume_from_checkpoint)
                    if resume_from_checkpoint:
                        check_resumable(Path(resume_from_checkpoint))
                    with measured_cost() as cost:
                        output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
                    self.record.details.cost = cost
                    self.record.details.resumed = bool(resume_from_checkpoint)
        finally:
            # The caller may fine-tune the model that was passed. `create_optimizer` freezes it again. What is sharded
            # stays as it is, because its parts were made with these flags.
            if not self._sharded:
                give_back_gradients(self.accelerator.unwrap_model(self.model))
        output.metrics.update(self.r2f_callback.summary(), steps=self.state.global_step)
        self.record.metrics |= {"train": output.metrics | {"stop_reason": self.stop_reason}, "after": {}}
        return output

    def unlearn(self, resume_from_checkpoint: str | bool | None = None) -> dict[str, dict[str, float]]:
        """
        Evaluate, unlearn, evaluate again, and save everything. This one call is what `r2f unlearn` does.

        The trainer writes to `args.output_dir`:

        - the model (or, with `update_target="adapter"`, the adapter) and its tokenizer;
        - `ledger.jsonl`, which says what the model was asked to forget (see `r2f ledger`);
        - the metrics, in `before_results.json`, `train_results.json` and `after_results.json`;
        - what `r2f report` reads in addition, in `_r2f_details.json`;
        - Trainer's state, with all logs, in `trainer_state.json`.

        It locks the folder from the first evaluation to the last file, so that no other run can write in between.

        Example:

        ```python
        metrics = trainer.unlearn(resume_from_checkpoint=True)
        for when in ("before", "after"):
            print(when, metrics[when]["eval_forget_probability"], metrics[when]["eval_retain_probability"])
        ```

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                As in [`~R2FTrainer.train`].

        Returns:
            `dict[str, dict[str, float]]`: Three sets of metrics. `"before"` and `"after"` are those of `evaluate`,
            from before the first step and from after the last one. `"train"` are those of [`~R2FTrainer.train`].

        Raises:
            `ValueError`: As in [`~R2FTrainer.train`].
            `RuntimeError`: As in [`~R2FTrainer.train`].
        """
        with self.locked():
            self.evaluate()
            output = self.train(resume_from_checkpoint=resume_from_checkpoint)
            # Not the metrics of the evaluation above: if the run was resumed, its checkpoint holds those from before
            # its first step, and this call may have found a model that had changed since.
            before = self.record.metrics["before"]
            after = self.evaluate()
            self.save_model()
            self.save_state()
            self.save_metrics("train", output.metrics)
            self.save_metrics("before", before, combined=False)
            self.save_metrics("after", after, combined=False)
        return {"before": before, "train": output.metrics, "after": after}

    def _begin(self) -> None:
        """
        Prepare the output folder and the record for a run that begins. A resumed run does none of this.

        Everything that can refuse the run comes first, then what is only kept in memory, and last what changes files.
        When this returns, the first step may change weights. With `keep_original`, those from before are on the disk.
        """
        args, model = self.args, self.accelerator.unwrap_model(self.model)
        # The hash stands for the model that the run begins with: in its checkpoints, in its ledger, and in the name of
        # the file with the weights from before.
        weights = self._weights_hash()
        # `hash_before` is set if this trainer has trained before. The run that is in the folder is its own then, which
        # it may continue or overwrite.
        if not args.overwrite_output_dir and self.record.hash_before is None:
            check_other_runs(args.output_dir, self.run_description | {"weights_before": weights}, self.source)
        # Once more, because the caller may have changed the model's settings since the trainer was made.
        writes_weights = self.target.adapter is None
        check_can_be_saved(args.output_dir, self.processing_class, model.get_base_model() if writes_weights else None)
        # Every process has read the folder. Only from here on may one of them change it.
        self.accelerator.wait_for_everyone()
        # Reads the folder's ledger, and refuses it if it is damaged. If this trainer has trained before, that run
        # becomes an entry of the ledger now.
        self.record.begin(args.output_dir, weights)
        # The stopping rule may have ended an earlier run of this trainer.
        self.stop_reason = None
        original = {}
        if args.keep_original and self.target.adapter is None:
            # Only the weights behind probes will change, so only they are kept.
            will_change = {f"{probe.name}.weight": probe.weight for probe in find_probes(model)}
            # Sharded weights are gathered, so all processes have to be here. Only the one that saves keeps them.
            original = gather(will_change, keep=args.should_save)
        if not args.should_save:
            return
        # Delete what an earlier run of this folder has left: `resume_from_checkpoint=True` could otherwise continue
        # from it instead of from this run. Folders without a `RUN_FILE` are not R2F's, and the folder that the model
        # was loaded from may be a checkpoint itself.
        for folder in checkpoints(args.output_dir):
            if (folder / RUN_FILE).is_file() and folder.resolve() != self.source:
                shutil.rmtree(folder)
        if original:
            keep_original(args.output_dir, original, weights)

    def _find_checkpoint(self) -> str | None:
        """The latest whole checkpoint in the output folder, the same on all processes."""
        choice = [None]
        if self.is_world_process_zero():
            latest = find_checkpoint(self.args.output_dir, self.run_description, self.args.overwrite_output_dir)
            choice = [latest and str(latest)]
        return broadcast_object_list(choice)[0]

    def _check_nodes(self, folder: str) -> None:
        """Refuse a checkpoint that only some nodes have. All processes refuse it: they would wait for each other."""
        whole = gather_object([(Path(folder) / CHECKSUMS_FILE).is_file()])
        if any(whole) and not all(whole):
            raise ValueError(
                f"Only some nodes have the checkpoint {folder}. Every node reads it, so its folder has to be "
                "on a disk that all of them share."
            )

    def _reload(self, folder: Path) -> TrainOutput:
        """Load the checkpoint at the end of a finished run, so that the trainer is as it was after the last step."""
        self._load_from_checkpoint(str(folder))
        self.state = read_trainer_state(folder)
        self.state.is_local_process_zero = self.is_local_process_zero()
        self.state.is_world_process_zero = self.is_world_process_zero()
        logger.warning("%s is the end of the run, so nothing is left to train. It was loaded.", folder)
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()
        losses = [logs["loss"] for logs in self.state.log_history if "loss" in logs]
        return TrainOutput(self.state.global_step, fmean(losses) if losses else math.nan, {"train_runtime": 0.0})

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """
        Evaluate, and keep the metrics for the ledger unless training goes on. See [`~transformers.Trainer.evaluate`].

        The ledger gets the last metrics from before training as `before`, and the last ones from after it as `after`.

        Returns:
            `dict[str, float]`: For each set (`forget`, `retain` and, if there is one, `holdout`) its mean
            length-normalised probability, such as `eval_forget_probability`, and Trainer's own metrics.
        """
        self._rows = None
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if not self.is_in_train:
            self.record.add_evaluation(metrics)
            if self._rows is not None:
                # Each set comes here on its own, with its name at the end of the prefix.
                self.record.add_rows(metric_key_prefix.removeprefix("eval_"), self._rows)
                self._rows = None
        return metrics
