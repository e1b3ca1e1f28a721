"""Suites by name, and their rows from a folder or the Hub."""

from __future__ import annotations

from pathlib import Path

from ...data.rows import load_rows
from ...lookup import lookup
from .base import Rows
from .tofu import TOFU_SPLITS


SUITES = {"tofu": TOFU_SPLITS}


def load_suite(name: str, data: str, forget: str = "forget01") -> dict[str, Rows]:
    """
    Load the splits of a suite.

    Args:
        name (`str`):
            `"tofu"`.
        data (`str`):
            A folder with one JSON-lines file a split, or a Hub dataset such as `locuslab/TOFU`.
        forget (`str`, *optional*, defaults to `"forget01"`):
            Which forget set: `"forget01"`, `"forget05"` or `"forget10"`.

    Returns:
        `dict[str, Dataset]`: The rows of each split. A folder may lack `real_authors` and `world_facts`.

    Raises:
        `FileNotFoundError`: If a folder lacks the forget or the retain split.
    """
    splits = {split: config.format(forget=forget) for split, config in lookup(SUITES, name, "suite").items()}
    folder = Path(data)
    if not folder.is_dir():
        return {split: load_rows(f"{data}:{config}") for split, config in splits.items()}
    files = {split: folder / f"{config}.json" for split, config in splits.items()}
    missing = [str(files[split]) for split in ("forget", "retain") if not files[split].is_file()]
    if missing:
        raise FileNotFoundError(f"The {name} suite needs {' and '.join(missing)}.")
    return {split: load_rows(str(file)) for split, file in files.items() if file.is_file()}
