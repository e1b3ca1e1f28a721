"""Suites by name. Their rows come from a folder or from the Hub."""

from __future__ import annotations

from pathlib import Path

from ...data.loading import load_rows
from ...lookup import lookup
from .base import Rows, Suite
from .tofu import TOFU


SUITES: dict[str, Suite] = {"tofu": TOFU}


def load_suite(name: str, data: str, forget: str = "forget01") -> dict[str, Rows]:
    """
    Load the rows of a suite's splits.

    Args:
        name (`str`):
            A name from [`SUITES`].
        data (`str`):
            A folder with one JSON-lines file per split, or a Hub dataset such as `locuslab/TOFU`.
        forget (`str`, *optional*, defaults to `"forget01"`):
            The forget set. TOFU has `"forget01"`, `"forget05"` and `"forget10"`.

    Returns:
        `dict[str, Dataset]`: The rows of each split. Splits that the suite does not require are left out if the folder
        has no file for them.

    Raises:
        `FileNotFoundError`: If the folder has no file for a split that the suite requires.
        `ValueError`: If there is no such suite.
    """
    suite = lookup(SUITES, name, "suite")
    names = {split: template.format(forget=forget) for split, template in suite.splits.items()}
    folder = Path(data)
    if not folder.is_dir():
        return {split: load_rows(f"{data}:{config}") for split, config in names.items()}
    files = {split: folder / f"{config}.json" for split, config in names.items()}
    missing = [str(files[split]) for split in suite.required if not files[split].is_file()]
    if missing:
        raise FileNotFoundError(
            f"The {name} suite needs {' and '.join(missing)}. Add the files, or choose another forget set."
        )
    return {split: load_rows(str(file)) for split, file in files.items() if file.is_file()}
