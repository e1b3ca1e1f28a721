"""What a checkpoint holds beside the model and Trainer's own state, and which checkpoint a run goes on from."""

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
from transformers.trainer import TRAINER_STATE_NAME

from .checkpoints import find_damage, last_whole_checkpoint
from .files import write_text
from .folder import RUN_FILE, run_differences


logger = logging.getLogger(__name__)

PROGRESS_FILE = "r2f_progress.json"
REFERENCES_FILE = "r2f_references.safetensors"

# The settings that have to be the same for a checkpoint to be a part of the same run.
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
    "adaptive",
    "protect_retain",
    "normalize_update",
)


@dataclass
class Progress:
    """
    How far a run had come when a checkpoint was saved.

    Args:
        stopped (`bool`):
            Whether a rule has ended the run. A callback of the user's does not count: it may be a deadline, after
            which the run goes on.
        stop_reason (`str`, *optional*):
            Why the stopping rule has ended it.
        max_steps (`int`):
            The steps that it was to take.
        num_train_epochs (`float`):
            The epochs that it was to take.
        skipped_steps (`int`):
            Steps that wrote nothing.
        fidelities (`list[float]`):
            Mean fidelity of each step.
        before (`dict[str, float]`):
            Metrics from before the run.
    """

    stopped: bool
    stop_reason: str | None
    max_steps: int
    num_train_epochs: float
    skipped_steps: int
    fidelities: list[float]
    before: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write it into a checkpoint."""
        write_text(folder / PROGRESS_FILE, json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> Progress:
        """Read it from a checkpoint."""
        return cls(**json.loads((folder / PROGRESS_FILE).read_text()))


def find_checkpoint(folder: str, description: Mapping[str, Any], overwrite: bool) -> Path | None:
    """
    The latest whole checkpoint of a run.

    Args:
        folder (`str`):
            The run's output folder.
        description (`Mapping[str, Any]`):
            What describes the run.
        overwrite (`bool`):
            Whether checkpoints of another run are passed over. Otherwise they are found, and refused when they are
            read.

    Returns:
        `Path`, *optional*: `None` if the run has to begin anew, which is logged.
    """
    latest = last_whole_checkpoint(folder)
    if latest is None:
        logger.warning("There is no whole checkpoint in %s: beginning anew.", folder)
    elif overwrite and run_differences(latest, description):
        logger.warning("The checkpoints in %s are another run's: beginning anew.", folder)
        return None
    return latest


def is_finished(folder: Path, args: TrainingArguments) -> bool:
    """Whether a checkpoint was saved at the end of its run. Trainer would take further steps from there."""
    if not (folder / PROGRESS_FILE).is_file() or find_damage(folder) is not None:
        return False
    step, progress = read_trainer_state(folder).global_step, Progress.read(folder)
    if args.max_steps > 0:
        return progress.stopped or step >= args.max_steps
    same = progress.num_train_epochs == args.num_train_epochs
    return progress.stopped or (same and step >= progress.max_steps)


def read_trainer_state(folder: Path) -> TrainerState:
    """The Trainer's state in a checkpoint."""
    return TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))


def check_checkpoint(folder: Path, description: Mapping[str, Any]) -> None:
    """
    Refuse a checkpoint that is damaged, or not this run's.

    Args:
        folder (`Path`):
            The checkpoint.
        description (`Mapping[str, Any]`):
            What describes the run.

    Raises:
        `ValueError`: Saying what is wrong, and what to do.
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


def save_references(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write what the run compares with into a checkpoint, if there is anything."""
    if tensors:
        # Several modules may share a tensor, which a file cannot.
        own = {name: each.clone(memory_format=torch.contiguous_format) for name, each in tensors.items()}
        save_file(own, folder / REFERENCES_FILE)


def load_references(folder: Path) -> dict[str, Tensor]:
    """Read what [`save_references`] wrote."""
    file = folder / REFERENCES_FILE
    return load_file(file) if file.is_file() else {}
