"""Undoing a run: the weights from before it are kept next to the model, and restored bit for bit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from .files import replace
from .folder import held, run_folder_lock
from .ledger import Entry, append, read_ledger, standing_requests, undo_entry, write_ledger
from .weights import load_saved, save_whole, weights_hash


# This folder is not pushed to the Hub with the model: Trainer leaves out names that begin with an underscore.
UNDO_FOLDER = "_undo"


def keep_original(folder: str | os.PathLike, weights: Mapping[str, Tensor], key: str) -> None:
    """
    Save the weights that a run is about to change.

    The updates of a run are not kept. A sum in floating point cannot be taken back exactly, and the factors of all
    steps take more room than the weights.

    Args:
        folder (`str` or `os.PathLike`):
            The run's output folder.
        weights (`Mapping[str, torch.Tensor]`):
            The weights, under the names of the plain model.
        key (`str`):
            Hash of all weights of the model, see [`~r2f_hf.runs.weights.weights_hash`].
    """
    file = original_file(folder, key)
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(".tmp")
    save_file({name: tensor.detach().contiguous() for name, tensor in weights.items()}, aside)
    replace(aside, file)


def original_file(folder: str | os.PathLike, key: str) -> Path:
    """The file in which [`keep_original`] keeps the weights of a model with this hash."""
    return Path(folder) / UNDO_FOLDER / f"{key[:16]}.safetensors"


@dataclass
class Undo:
    """
    An undone run, checked and not yet written.

    Args:
        folder (`Path`):
            The model folder.
        model ([`~transformers.PreTrainedModel`]):
            The model as it was before the run.
        entries (`list[dict]`):
            The ledger as it will be written.
        number (`int`):
            Number of the entry that is undone, counted from 1.
        file (`Path`):
            The file with the weights that were kept. It is deleted once the model is written.
        lock ([`~filelock.FileLock`]):
            The lock of the folder, held until the model is written.
    """

    folder: Path
    model: PreTrainedModel
    entries: list[Entry]
    number: int
    file: Path
    lock: FileLock

    def write(self) -> None:
        """Write the model and the ledger, and delete the weights that were kept."""
        save_whole(self.model, self.folder)
        write_ledger(self.folder, self.entries)
        self.file.unlink(missing_ok=True)
        self.lock.release()


def prepare_undo(folder: str | os.PathLike) -> Undo:
    """
    Restore in memory the weights from before the last run that has not been undone.

    Args:
        folder (`str` or `os.PathLike`):
            A model folder with a ledger.

    Returns:
        [`Undo`]: The restored model, with every hash checked. Nothing is written before [`Undo.write`].

    Raises:
        `FileNotFoundError`: If there is no ledger, or the weights were not kept.
        `ValueError`: If nothing is left to undo, or a run is writing to the folder. Also if the ledger, the model or
            the kept weights are not what was written.
    """
    folder = Path(folder)
    read_ledger(folder)
    lock = run_folder_lock(folder)
    with held(lock):
        undo = _prepare(folder, lock)
        # Held once more, until `Undo.write` releases it.
        lock.acquire()
    return undo


@torch.no_grad()
def _prepare(folder: Path, lock: FileLock) -> Undo:
    """[`prepare_undo`], once the lock is held."""
    entries = read_ledger(folder)
    standing = standing_requests(entries)
    if not standing:
        raise ValueError(f"Nothing is left to undo in {folder}: all {len(entries)} entries are undone or undo one.")
    if (folder / SAFETENSORS_WEIGHTS_NAME).is_file():
        raise ValueError(
            f"{folder} is an adapter: its base model was never changed. Without the adapter it is as it was before."
        )
    number = standing[-1]
    before = entries[number - 1]["weights"]["before"]
    file = original_file(folder, before)
    model = load_saved(folder)
    state = model.state_dict()
    now = weights_hash(state)
    # An undo that was interrupted between the model and the ledger has restored the weights already.
    if now != before:
        if now != entries[-1]["weights"]["after"]:
            raise ValueError(
                f"The weights in {folder} are not those that the last entry of the ledger has left: something else "
                f"has changed them, and undoing would lose that. `r2f verify {folder}` says more."
            )
        if not file.is_file():
            raise FileNotFoundError(
                f"The weights from before entry {number} are not in {file}: the run was told not to keep them "
                "(`keep_original`), wrote to another folder (an entry can only be undone where it was made), or they "
                "were deleted."
            )
        try:
            kept = load_file(file)
            for name, tensor in kept.items():
                state[name].copy_(tensor)
        except (SafetensorError, KeyError, RuntimeError) as error:
            raise ValueError(f"{file} is damaged or of another model: {error}. Nothing was written.") from error
        if weights_hash(state) != before:
            raise ValueError(f"{file} does not restore the weights from before entry {number}. Nothing was written.")
    entry = undo_entry(number, {"before": entries[-1]["weights"]["after"], "after": before})
    return Undo(folder, model, append(entries, entry), number, file, lock)
