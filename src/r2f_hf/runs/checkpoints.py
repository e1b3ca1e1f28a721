"""Checkpoints that are whole or do not count: checksums, written last and checked before anything is read."""

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
    Declare a checkpoint whole: write the SHA-256 of each of its files, once all of them are on the disk.

    The list is written aside and renamed into place after everything else, so that a checkpoint has it only if its
    saving was not interrupted.

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
    What is wrong with a checkpoint, if anything.

    Args:
        folder (`str` or `os.PathLike`):
            The checkpoint.

    Returns:
        `str`, *optional*: Its first damage in words, or `None` if every file is what [`seal`] saw.
    """
    folder = Path(folder)
    if not (folder / CHECKSUMS_FILE).is_file():
        return f"it has no {CHECKSUMS_FILE}, so its saving was interrupted"
    try:
        text = (folder / CHECKSUMS_FILE).read_text(encoding="utf-8")
        checksums = json.loads(text)
        # Byte for byte as it was written: a change that JSON would read over counts too.
        intact = text == json.dumps(checksums, indent=2) + "\n" and isinstance(checksums, dict)
    except ValueError:
        intact = False
    if not intact:
        return f"{CHECKSUMS_FILE} is damaged"
    for name, checksum in checksums.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if file_hash(folder / name) != checksum:
            return f"{name} is damaged (its checksum is another)"
    return None


def checkpoints(folder: str | os.PathLike) -> list[Path]:
    """The checkpoints in an output folder, whole or not, the latest first."""
    names = {path: re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name) for path in Path(folder).glob("*-*")}
    steps = {int(match[1]): path for path, match in names.items() if match and path.is_dir()}
    return [steps[step] for step in sorted(steps, reverse=True)]


def last_whole_checkpoint(folder: str | os.PathLike) -> Path | None:
    """
    The latest checkpoint of a run that is whole. Those after it are named in the log, with what is wrong with them.

    Args:
        folder (`str` or `os.PathLike`):
            The run's output folder.

    Returns:
        `Path`, *optional*
    """
    for path in checkpoints(folder):
        damage = find_damage(path)
        if damage is None:
            return path
        logger.warning("%s is not used: %s.", path, damage)
    return None
