"""Files that are either whole or not there, even if the process or the machine stops while they are written."""

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
    """Wait until a file's bytes, or a folder's names, are on the disk, and not only in the system's cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(source: str | os.PathLike, destination: str | os.PathLike) -> None:
    """
    Rename a file into place. Readers find either the old file or the whole new one.

    Args:
        source (`str` or `os.PathLike`):
            The file, on the same disk.
        destination (`str` or `os.PathLike`):
            Its new name. A file of this name is replaced.
    """
    sync(source)
    os.replace(source, destination)
    sync(Path(destination).parent)


def write_text(path: str | os.PathLike, text: str) -> None:
    """
    Write a text file next to its destination, and rename it into place.

    Args:
        path (`str` or `os.PathLike`):
            Destination. Missing folders are created.
        text (`str`):
            The text to write.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text, encoding="utf-8")
    replace(aside, path)


def write_json(path: str | os.PathLike, content: Any) -> None:
    """
    Write a JSON file next to its destination, and rename it into place.

    Args:
        path (`str` or `os.PathLike`):
            Destination. Missing folders are created.
        content (`Any`):
            The content to write.

    Raises:
        `ValueError`: If a number is NaN or infinite.
    """
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_kept(path: str | os.PathLike | None) -> dict[str, Any]:
    """
    Read results that an earlier run has kept together with the `key` of what they depend on.

    Args:
        path (`str` or `os.PathLike`, *optional*):
            The file.

    Returns:
        `dict`: The results. It is empty if there is no file, or one that is cut off.

    Raises:
        `ValueError`: If the file holds something else, which must not be overwritten.
    """
    if path is None or not Path(path).is_file():
        return {}
    text = Path(path).read_text(encoding="utf-8")
    try:
        found = json.loads(text)
    except ValueError:
        found = {"key": None} if text[:20].split()[:2] == ["{", '"key":'] else None
    if not isinstance(found, dict) or "key" not in found:
        raise ValueError(f"{path} is no file of an earlier run, and is not overwritten. Choose another `output_dir`.")
    return found


@contextmanager
def written_aside(folder: str | os.PathLike) -> Iterator[Path]:
    """
    Yield a folder to write files into. If the block ends without an error, they are renamed into `folder`.

    Args:
        folder (`str` or `os.PathLike`):
            Where the files are to be. It is created if it is missing.

    Yields:
        `Path`: An empty folder within `folder`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / ".saving"
    # A save that was interrupted may have left files.
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
