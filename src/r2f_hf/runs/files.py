"""Files that are whole or not there, even where the process or the machine goes down while they are written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def sync(path: str | os.PathLike) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk and not in a cache of the system's."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(source: str | os.PathLike, destination: str | os.PathLike) -> None:
    """
    Rename a file into place, so that whoever looks finds the old one or the whole new one.

    Args:
        source (`str` or `os.PathLike`):
            The file, on the same disk.
        destination (`str` or `os.PathLike`):
            Its name from now on; what is there is replaced.
    """
    sync(source)
    os.replace(source, destination)
    sync(Path(destination).parent)


def write_text(path: str | os.PathLike, text: str) -> None:
    """
    Write a file beside its destination and rename it into place.

    Args:
        path (`str` or `os.PathLike`):
            Destination; missing folders are made.
        text (`str`):
            What to write.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text, encoding="utf-8")
    replace(aside, path)


def write_json(path: str | os.PathLike, content: Any) -> None:
    """
    Write JSON beside its destination and rename it into place.

    Args:
        path (`str` or `os.PathLike`):
            Destination; missing folders are made.
        content (`Any`):
            What to write.

    Raises:
        `ValueError`: If a number is NaN or infinite.
    """
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


@contextmanager
def written_aside(folder: str | os.PathLike) -> Iterator[Path]:
    """
    A folder to write files into, which are renamed into `folder` once the block has ended without an error.

    Args:
        folder (`str` or `os.PathLike`):
            Where the files are to be; made where it is missing.

    Yields:
        `Path`: The empty folder beside them.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / ".saving"
    # What an interrupted save has left.
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        for path in sorted(aside.iterdir()):
            replace(path, folder / path.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def file_hash(path: str | os.PathLike) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
