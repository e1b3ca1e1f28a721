"""What Trainer pushes to the Hub from an output folder, and what must not be among it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub.utils import DEFAULT_IGNORE_PATTERNS, filter_repo_objects
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


# As in `Trainer.push_to_hub`: among these are `_undo`, the lock, and the references in the checkpoints.
IGNORE_PATTERNS = ["_*", f"{PREFIX_CHECKPOINT_DIR}-*"]
# They hold numbers, and nothing else is as large.
WEIGHTS = ".safetensors"
# Rows in these formats cannot be searched for.
UNREADABLE = (".parquet", ".arrow", ".gz", ".zip", ".bz2", ".xz", ".zst")
# Rows of fewer characters stand in files by chance, and so do single texts of fewer.
SHORTEST_ROW = 12
SHORTEST_TEXT = 24


def uploaded(folder: str | os.PathLike) -> list[Path]:
    """
    The files of a folder that Trainer pushes.

    Args:
        folder (`str` or `os.PathLike`):
            The output folder.
    """
    names = [path.relative_to(folder).as_posix() for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    kept = filter_repo_objects(names, ignore_patterns=IGNORE_PATTERNS + DEFAULT_IGNORE_PATTERNS)
    return [Path(folder) / name for name in kept]


def check_upload(folder: str | os.PathLike, rows: Sequence[Sequence[str]]) -> None:
    """
    Refuse to push a folder in which rows of the forget set stand.

    Args:
        folder (`str` or `os.PathLike`):
            The output folder.
        rows (`Sequence[Sequence[str]]`):
            The texts of each row.

    Raises:
        `ValueError`: If a file holds a long text of a row, or all texts of it, or if it may hold rows in a format that
            cannot be searched. The message names the file and the number of the row.
    """
    wanted = [
        (number, [(len(text) >= SHORTEST_TEXT, forms(text)) for text in row])
        for number, row in enumerate(rows)
        if len("".join(row)) >= SHORTEST_ROW
    ]
    for file in uploaded(folder):
        if file.suffix in UNREADABLE:
            raise ValueError(
                f"{file} would be pushed to the Hub, and may hold rows that are to be forgotten: it cannot be "
                "searched. Move it out of the output folder."
            )
        if file.suffix == WEIGHTS:
            continue
        content = file.read_bytes()
        for number, texts in wanted:
            found = [(long, any(form in content for form in of_text)) for long, of_text in texts]
            if all(there for _, there in found) or any(long and there for long, there in found):
                raise ValueError(
                    f"{file} would be pushed to the Hub, and row {number} of the forget set stands in it. Move it out "
                    "of the output folder."
                )


def forms(text: str) -> tuple[bytes, ...]:
    """A text as it may stand in a file: plain, and in JSON with and without other letters escaped."""
    escaped = (json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1])
    return tuple(form.encode(errors="surrogatepass") for form in (text, *escaped))
