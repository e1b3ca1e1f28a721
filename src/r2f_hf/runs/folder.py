"""The output folder of a run: it has room, only one run writes to it at a time, and none overwrites another."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG_NAME
from transformers.utils import CONFIG_NAME

from .checkpoints import checkpoints


RUN_FILE = "r2f_run.json"
# Trainer does not push names that begin with an underscore.
LOCK_FILE = "_r2f.lock"


def check_output_folder(folder: str | os.PathLike, needed: int) -> None:
    """
    Refuse an output folder that the result cannot be written to.

    Args:
        folder (`str` or `os.PathLike`):
            The folder. It is created if it is missing.
        needed (`int`):
            Number of bytes that the result takes.

    Raises:
        `ValueError`: If the folder cannot be written to, or if its disk has less room.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, ValueError) as error:
        # A name with a character that no path may have is a ValueError. `repr` shows the character.
        raise ValueError(
            f"Nothing can be written to the output folder {os.fspath(folder)!r}: {error}. Choose another `output_dir`."
        ) from error
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"The disk of the output folder {os.fspath(folder)} has {free / 1e9:.2f} GB left and the model takes "
            f"{needed / 1e9:.2f} GB. Make room, or choose another `output_dir`."
        )


def run_folder_lock(folder: str | os.PathLike) -> FileLock:
    """
    The lock of an output folder, not yet held. The system releases it when the process ends, however that happens.

    Args:
        folder (`str` or `os.PathLike`):
            The folder. It is created if it is missing.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    return FileLock(Path(folder) / LOCK_FILE, timeout=0)


@contextmanager
def held(lock: FileLock) -> Iterator[None]:
    """
    Hold the lock of an output folder within the block. Blocks of one lock may be nested.

    Raises:
        `ValueError`: If another run holds it.
    """
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"Another run is writing to the output folder {Path(lock.lock_file).parent}. Wait for it, or choose "
            "another `output_dir`."
        ) from error
    try:
        yield
    finally:
        lock.release()


def read_run(folder: Path) -> dict[str, Any]:
    """Read the description of the run that has written to a folder."""
    return json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))


def run_differences(folder: Path, description: Mapping[str, Any]) -> list[str]:
    """
    Find the differences between a run and the one that has written to a folder.

    Args:
        folder (`Path`):
            A folder with a `r2f_run.json`.
        description (`Mapping[str, Any]`):
            The description of the run. Other keys in the file do not count.

    Returns:
        `list[str]`: The differences in words. Empty if there are none.
    """
    try:
        then = read_run(folder)
    except ValueError:
        return [f"{RUN_FILE} cannot be read"]
    # The description goes through JSON, as the one in the file did, so that equal values compare as equal.
    now = json.loads(json.dumps(description))
    return [f"{key} was {then.get(key)!r}, is {now[key]!r}" for key in now if now[key] != then.get(key)]


def check_other_runs(folder: str | os.PathLike, description: Mapping[str, Any], source: Path | None = None) -> None:
    """
    Refuse an output folder that holds the result or a checkpoint of another run, which would be overwritten.

    Args:
        folder (`str` or `os.PathLike`):
            The output folder.
        description (`Mapping[str, Any]`):
            The description of the run that is about to begin.
        source (`Path`, *optional*):
            The folder that the model comes from.

    Raises:
        `ValueError`: If the folder holds another run, or a model that is not the source. The message says in what the
            other run differs.
    """
    remedy = "Choose another `output_dir`, or set `overwrite_output_dir`."
    for place in (Path(folder), *checkpoints(folder)):
        if (place / RUN_FILE).is_file():
            different = run_differences(place, description)
            if different:
                raise ValueError(
                    f"{place} holds another run, which this one would overwrite: {'; '.join(different)}. {remedy}"
                )
    holds_model = any((Path(folder) / name).is_file() for name in (CONFIG_NAME, ADAPTER_CONFIG_NAME))
    if holds_model and not (Path(folder) / RUN_FILE).is_file() and Path(folder).resolve() != source:
        raise ValueError(f"{os.fspath(folder)} holds a model or an adapter, which this run would overwrite. {remedy}")
