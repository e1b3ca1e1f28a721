"""TrackerCallback: a histogram of the fidelity of all modules, and one run per tracker for all logs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback
from transformers.integrations.integration_utils import default_logdir
from transformers.trainer_callback import CallbackHandler

from ..gradients import Fidelity


# Trainer's trackers put `train/` before the name of each training log.
HISTOGRAM = "train/r2f/fidelity_by_module"


class TrackerCallback(TrainerCallback):
    """
    Adds to Trainer's own trackers.

    TensorBoard, trackio and W&B get the same names from Trainer. With each training log they also get
    `train/r2f/fidelity_by_module`, a histogram over the modules in the last step.

    [`~R2FTrainer.unlearn`] evaluates before and after training. Left alone, TensorBoard writes the first of these logs
    to the current folder, and the last one to the output folder. Trackio begins another run for the last one. Here all
    logs are in one place.

    Args:
        fidelity (`Callable[[], Mapping[str, Fidelity]]`):
            Gives the fidelity of each module in the last step.
        handler ([`~transformers.trainer_callback.CallbackHandler`]):
            That of the Trainer. It knows the trackers.
        args ([`~transformers.TrainingArguments`]):
            Those of the Trainer.
    """

    def __init__(
        self, fidelity: Callable[[], Mapping[str, Fidelity]], handler: CallbackHandler, args: TrainingArguments
    ):
        self.fidelity, self.handler = fidelity, handler
        for tracker in handler.callbacks:
            if isinstance(tracker, TensorBoardCallback) and tracker.logging_dir is None:
                tracker.logging_dir = os.path.join(args.output_dir, default_logdir())

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Keep the name that trackio has given the run, by which a later log finds it."""
        if state.is_world_process_zero and self._uses(TrackioCallback):
            import trackio

            run = trackio.context_vars.current_run.get()
            args.run_name = args.run_name or (run and run.name)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **kwargs
    ) -> None:
        """Send the histogram with each training log."""
        if "loss" not in logs or not state.is_world_process_zero:
            return
        cosines = np.array([each.cosine for each in self.fidelity().values()], dtype=float)
        cosines = cosines[np.isfinite(cosines)]
        if not cosines.size:
            return
        for tracker in self.handler.callbacks:
            if isinstance(tracker, TensorBoardCallback) and tracker.tb_writer is not None:
                tracker.tb_writer.add_histogram(HISTOGRAM, cosines, state.global_step)
                tracker.tb_writer.flush()
        if self._uses(WandbCallback):
            import wandb

            if wandb.run is not None:
                wandb.log({HISTOGRAM: wandb.Histogram(cosines), "train/global_step": state.global_step})
        if self._uses(TrackioCallback):
            import trackio

            trackio.log({HISTOGRAM: trackio.Histogram(cosines), "train/global_step": state.global_step})

    def _uses(self, kind: type[TrainerCallback]) -> bool:
        return any(isinstance(tracker, kind) for tracker in self.handler.callbacks)
