"""What a checkpoint holds in addition to the model and Trainer's state, and which checkpoint a run resumes from."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerState, TrainingArguments
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME

from .checkpoints import find_damage, last_whole_checkpoint
from .files import write_text
from .folder import RUN_FILE, run_differences


logger = logging.getLogger(__name__)

PROGRESS_FILE = "r2f_progress.json"
REFERENCES_FILE = "r2f_references.safetensors"

# A checkpoint belongs to a run only if these settings are the same.
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
    "on_bad_gradient",
    "forget_objective",
    "forget_objective_kwargs",
    "retain_objective",
    "retain_objective_kwargs",
    "forget_weight",
    "retain_weight",
    "retain_per_forget",
    "num_views",
    "max_length",
    "window_overlap",
    "chat_template_kwargs",
    "system_prompt",
    "adaptive",
    "spectrum_damping",
    "simulated_relearning",
    "protect_retain",
    "normalize_update",
)


@dataclass
class Progress:
    """
    How far a run had come when a checkpoint was saved.

    Args:
        stopped (`bool`):
            Whether a rule has ended the run. A callback of the user does not count: it may be a deadline, after which
            the run goes on.
        stop_reason (`str`, *optional*):
            Why the stopping rule has ended the run.
        max_steps (`int`):
            The number of steps that the run was to take.
        num_train_epochs (`float`):
            The number of epochs that the run was to take.
        skipped_steps (`int`):
            The number of steps that wrote nothing.
        fidelities (`list[float]`):
            Mean fidelity of each step.
        before (`dict[str, float]`):
            Metrics from before the run.
        module_fidelities (`list[list[float]]`):
            Fidelity of each module at each step.
        rows_before (`dict[str, list[float]]`):
            Probability of each row from before the run, by set.
    """

    stopped: bool
    stop_reason: str | None
    max_steps: int
    num_train_epochs: float
    skipped_steps: int
    fidelities: list[float]
    before: dict[str, Any] = field(default_factory=dict)
    module_fidelities: list[list[float]] = field(default_factory=list)
    rows_before: dict[str, list[float]] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Save it into a checkpoint."""
        write_text(folder / PROGRESS_FILE, json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> Progress:
        """Load it from a checkpoint."""
        return cls(**json.loads((folder / PROGRESS_FILE).read_text()))


def find_checkpoint(folder: str, description: Mapping[str, Any], overwrite: bool) -> Path | None:
    """
    Find the latest whole checkpoint of a run.

    Args:
        folder (`str`):
            The run's output folder.
        description (`Mapping[str, Any]`):
            The description of the run.
        overwrite (`bool`):
            Whether checkpoints of another run are skipped. Otherwise they are found, and refused when they are loaded.

    Returns:
        `Path`, *optional*: The checkpoint. `None` if the run has to start from the beginning, which is logged.
    """
    latest = last_whole_checkpoint(folder)
    if latest is None:
        logger.warning("There is no whole checkpoint in %s: starting from the beginning.", folder)
    elif overwrite and run_differences(latest, description):
        logger.warning("The checkpoints in %s belong to another run: starting from the beginning.", folder)
        return None
    return latest


def is_finished(folder: Path, args: TrainingArguments) -> bool:
    """Whether a checkpoint was saved at the end of its run, where Trainer would take further steps."""
    if not (folder / PROGRESS_FILE).is_file() or find_damage(folder) is not None:
        return False
    step, progress = read_trainer_state(folder).global_step, Progress.read(folder)
    if args.max_steps > 0:
        return progress.stopped or step >= args.max_steps
    same = progress.num_train_epochs == args.num_train_epochs
    return progress.stopped or (same and step >= progress.max_steps)


def read_trainer_state(folder: Path) -> TrainerState:
    """Load the Trainer's state from a checkpoint."""
    return TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))


def check_checkpoint(folder: Path, description: Mapping[str, Any]) -> None:
    """
    Refuse a checkpoint that is damaged, or that belongs to another run.

    Args:
        folder (`Path`):
            The checkpoint.
        description (`Mapping[str, Any]`):
            The description of the run.

    Raises:
        `ValueError`: For such a checkpoint. The message says what is wrong, and what to do.
    """
    if not (folder / RUN_FILE).is_file():
        raise ValueError(f"{folder} is not a checkpoint of R2FTrainer (it has no {RUN_FILE}).")
    damage = find_damage(folder)
    if damage is not None:
        raise ValueError(
            f"{folder} cannot be resumed from: {damage}. With `resume_from_checkpoint=True` the latest whole "
            "checkpoint is found."
        )
    changed = run_differences(folder, description)
    if changed:
        raise ValueError(
            f"{folder} belongs to a run with another configuration: {'; '.join(changed)}. Resume with the old "
            "settings, or start a new run in another `output_dir`."
        )


def check_resumable(folder: Path) -> None:
    """
    Refuse to go on from a checkpoint that is whole, but has no state of the learning rate's schedule.

    Raises:
        `ValueError`: If it was saved with `save_only_model`.
    """
    if (folder / RUN_FILE).is_file():
        check_schedule(folder)


def check_schedule(folder: Path) -> None:
    """
    Refuse a checkpoint of any Trainer that has no state of the learning rate's schedule.

    Raises:
        `ValueError`: If it was saved with `save_only_model`.
    """
    if not (folder / SCHEDULER_NAME).is_file():
        raise ValueError(
            f"{folder} was saved with `save_only_model`: it has no {SCHEDULER_NAME}, so that the learning rate would "
            "start at its height again. Begin anew, without `save_only_model`: the probes' optimizer has hardly any "
            "state, and checkpoints are about as small."
        )


def save_references(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Save the tensors that the run compares with into a checkpoint, if there are any."""
    if tensors:
        # Several modules may share a tensor, but a file cannot hold shared ones.
        copies = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
        save_file(copies, folder / REFERENCES_FILE)


def load_references(folder: Path) -> dict[str, Tensor]:
    """Load what [`save_references`] saved."""
    file = folder / REFERENCES_FILE
    return load_file(file) if file.is_file() else {}
