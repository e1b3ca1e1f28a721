"""Checkpoints count only if they are whole: checksums are written last, and checked before anything is loaded."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .files import file_hash, sync, write_json


logger = logging.getLogger(__name__)

CHECKSUMS_FILE = "r2f_checksums.json"


def seal(folder: str | os.PathLike) -> None:
    """
    Declare a checkpoint whole: once all of its files are on the disk, write the SHA-256 of each of them.

    The list is written aside, and renamed into place after everything else. So a checkpoint has it only if saving was
    not interrupted.

    Args:
        folder (`str` or `os.PathLike`):
            The checkpoint.
    """
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS_FILE)
    for path in files:
        sync(path)
    write_json(folder / CHECKSUMS_FILE, {path.relative_to(folder).as_posix(): file_hash(path) for path in files})
    sync(folder.parent)


def find_damage(folder: str | os.PathLike) -> str | None:
    """
    Find out what is wrong with a checkpoint, if anything.

    Args:
        folder (`str` or `os.PathLike`):
            The checkpoint.

    Returns:
        `str`, *optional*: The first damage in words, or `None` if every file is as [`seal`] found it.
    """
    folder = Path(folder)
    if not (folder / CHECKSUMS_FILE).is_file():
        return f"it has no {CHECKSUMS_FILE}, so its saving was interrupted"
    try:
        text = (folder / CHECKSUMS_FILE).read_text(encoding="utf-8")
        checksums = json.loads(text)
        # The bytes must be those that were written: a change that does not matter to JSON counts as damage too.
        intact = text == json.dumps(checksums, indent=2) + "\n" and isinstance(checksums, dict)
    except ValueError:
        intact = False
    if not intact:
        return f"{CHECKSUMS_FILE} is damaged"
    for name, checksum in checksums.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if file_hash(folder / name) != checksum:
            return f"{name} is damaged (its checksum has changed)"
    return None


def checkpoints(folder: str | os.PathLike) -> list[Path]:
    """The checkpoints in an output folder, whole or not, the latest first."""
    matches = {path: re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name) for path in Path(folder).glob("*-*")}
    steps = {int(match[1]): path for path, match in matches.items() if match and path.is_dir()}
    return [steps[step] for step in sorted(steps, reverse=True)]


def last_whole_checkpoint(folder: str | os.PathLike) -> Path | None:
    """
    Find the latest whole checkpoint of a run. For each later one, the log says what is wrong with it.

    Args:
        folder (`str` or `os.PathLike`):
            The run's output folder.

    Returns:
        `Path`, *optional*: The checkpoint, or `None` if none is whole.
    """
    for path in checkpoints(folder):
        damage = find_damage(path)
        if damage is None:
            return path
        logger.warning("%s is not used: %s.", path, damage)
    return None
