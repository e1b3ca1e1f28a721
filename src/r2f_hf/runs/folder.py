"""The output folder of a run: room to write in, one run at a time, and no run over another's."""

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
LOCK_FILE = ".r2f.lock"


def check_output_folder(folder: str | os.PathLike, needed: int) -> None:
    """
    Refuse an output folder that the result could not be written to.

    Args:
        folder (`str` or `os.PathLike`):
            The folder; made where it is missing.
        needed (`int`):
            Bytes that the result takes.

    Raises:
        `ValueError`: If it cannot be written to, or its disk has less room.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"Nothing can be written to the output folder {os.fspath(folder)}: {error}.") from error
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"The disk of the output folder {os.fspath(folder)} has {free / 1e9:.2f} GB left and the model takes "
            f"{needed / 1e9:.2f} GB. Make room, or choose another `output_dir`."
        )


def run_folder_lock(folder: str | os.PathLike) -> FileLock:
    """
    The lock of an output folder, not yet held. It is the system's: it goes with the process, however that ends.

    Args:
        folder (`str` or `os.PathLike`):
            The folder; made where it is missing.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    return FileLock(Path(folder) / LOCK_FILE, timeout=0)


@contextmanager
def held(lock: FileLock) -> Iterator[None]:
    """
    Hold the lock of an output folder, perhaps once more.

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
    """What describes the run that has written to a folder."""
    return json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))


def run_differences(folder: Path, description: Mapping[str, Any]) -> list[str]:
    """
    In what a run differs from the one that has written to a folder.

    Args:
        folder (`Path`):
            A folder with a `r2f_run.json`.
        description (`Mapping[str, Any]`):
            What describes the run; whatever else the file says does not count.

    Returns:
        `list[str]`: In words; empty if they are the same.
    """
    try:
        then = read_run(folder)
    except ValueError:
        return [f"{RUN_FILE} cannot be read"]
    # Through JSON, so that what was written compares equal to what is held.
    now = json.loads(json.dumps(description))
    return [f"{key} was {then.get(key)!r}, is {now[key]!r}" for key in now if now[key] != then.get(key)]


def check_other_runs(folder: str | os.PathLike, description: Mapping[str, Any], source: Path | None = None) -> None:
    """
    Refuse an output folder that holds the result or a checkpoint of another run, which would be overwritten.

    Args:
        folder (`str` or `os.PathLike`):
            The output folder.
        description (`Mapping[str, Any]`):
            What describes the run that is about to begin.
        source (`Path`, *optional*):
            The folder that the model comes from.

    Raises:
        `ValueError`: If there is another run's, saying in what it differs, or a model that is not the source.
    """
    remedy = "Choose another `output_dir`, or set `overwrite_output_dir`."
    for place in (Path(folder), *checkpoints(folder)):
        if (place / RUN_FILE).is_file():
            different = run_differences(place, description)
            if different:
                raise ValueError(
                    f"{place} holds another run, which this one would overwrite: {'; '.join(different)}. {remedy}"
                )
    found = any((Path(folder) / name).is_file() for name in (CONFIG_NAME, ADAPTER_CONFIG_NAME))
    if found and not (Path(folder) / RUN_FILE).is_file() and Path(folder).resolve() != source:
        raise ValueError(f"{os.fspath(folder)} holds a model or an adapter, which this run would overwrite. {remedy}")
