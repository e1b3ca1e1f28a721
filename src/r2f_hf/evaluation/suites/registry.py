"""Suites by name. Their rows come from a folder or from the Hub."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...data.loading import load_rows
from ...data.rows import column_names
from ...lookup import lookup
from .base import Rows, Suite
from .knowundo import KNOWUNDO
from .muse import MUSE
from .own import OWN
from .rwku import RWKU
from .tofu import TOFU
from .wmdp import WMDP


SUITES: dict[str, Suite] = {
    "tofu": TOFU,
    "muse": MUSE,
    "wmdp": WMDP,
    "rwku": RWKU,
    "knowundo": KNOWUNDO,
    "own": OWN,
}


def load_suite(name: str, data: str | None = None, forget: str | None = None) -> dict[str, Rows]:
    """
    Load the rows of a suite's splits.

    Args:
        name (`str`):
            A name from [`SUITES`]. The rows of `"own"` are loaded by [`load_own`].
        data (`str`, *optional*):
            A folder with one JSON or JSON-lines file per split, or a Hub dataset. Defaults to the suite's own name on
            the Hub, such as `locuslab/TOFU`. The files have the names of the Hub: `config.json`, or
            `config/split.json` where a config has several splits.
        forget (`str`, *optional*):
            The forget set. TOFU has `"forget01"` (the default), `"forget05"` and `"forget10"`; MUSE's `scal` and
            `sust` have `"scal:forget_2"` and so on; KnowUnDo has `"copyright"` (the default) and `"privacy"`. For RWKU
            it is the name of a person. Without one the rows of all are taken.

    Returns:
        `dict[str, Dataset]`: The rows of each split. Splits that the suite does not require are left out if the folder
        has no file for them.

    Raises:
        `FileNotFoundError`: If the folder has no file for a split that the suite requires.
        `ValueError`: If there is no such suite.
    """
    suite = lookup(SUITES, name, "suite")
    data = data or suite.hub
    if suite.hub is None or data is None:
        raise ValueError(f"The {name} suite has no data of its own. Set `forget_data` and `retain_data`.")
    chosen = [split for split, template in suite.splits.items() if "{forget}" in template]
    if forget is not None and not chosen and suite.subject is None:
        raise ValueError(f"The {name} suite has no forget sets to choose from. Leave out {forget!r}.")
    names = split_names(suite, forget or suite.forget)
    folder = Path(data)
    if not folder.is_dir():
        if folder.suffix or data.startswith((".", "/", "~")):
            raise FileNotFoundError(f"There is no folder {data}. The {name} suite needs one, or a Hub dataset.")
        return _about({split: load_rows(f"{data}:{there}") for split, there in names.items()}, suite, forget)
    files = {split: find_file(folder, there) for split, there in names.items()}
    # A forget set that is asked for by name has to be there.
    required = dict.fromkeys([*suite.required, *(chosen if forget is not None else [])])
    missing = [split for split in required if files.get(split) is None]
    if missing or not any(files.values()):
        wanted = [file_names(names[split])[0] for split in missing or names if split in names]
        paths = " and ".join(str(folder / file) for file in wanted)
        raise FileNotFoundError(f"The {name} suite needs {paths}.{_what_is_there(folder, wanted[0])}")
    rows = {split: load_rows(str(file)) for split, file in files.items() if file is not None}
    return _about(rows, suite, forget)


def _about(splits: dict[str, Rows], suite: Suite, forget: str | None) -> dict[str, Rows]:
    """The rows about one person, where a suite has those of several."""
    column = suite.subject
    if column is None or forget is None:
        return splits
    people = {row[column] for split in suite.required for row in splits[split] if isinstance(row.get(column), str)}
    lookup(dict.fromkeys(people), forget, column, list_all=False)
    chosen = {split: [row for row in rows if row.get(column) == forget] for split, rows in splits.items()}
    return {split: rows for split, rows in chosen.items() if rows or split in suite.required}


def split_names(suite: Suite, forget: str | None) -> dict[str, str]:
    """
    Name the splits of a suite as the Hub has them.

    Args:
        suite ([`Suite`]):
            The suite.
        forget (`str`, *optional*):
            The forget set.

    Returns:
        `dict[str, str]`: `config` or `config:split`. Splits that depend on a forget set are left out without one, and
        so is a holdout set whose name cannot be derived.
    """
    names = {}
    for split, template in suite.splits.items():
        if "{forget}" in template and forget is None:
            continue
        if "{holdout}" in template and (forget is None or "forget" not in forget):
            continue
        values = {} if forget is None else {"forget": forget, "holdout": forget.replace("forget", "holdout")}
        names[split] = template.format(**values)
    return names


def file_names(there: str) -> list[str]:
    """The names that the file of a split may have in a local folder."""
    config, _, split = there.partition(":")
    stems = [f"{config}/{split}"] if split else [config]
    # Where a config has one split, the file may be called by the config alone.
    stems = [config, *stems] if split in ("train", "test") else stems
    return [stem + suffix for stem in stems for suffix in (".json", ".jsonl")]


def find_file(folder: Path, there: str) -> Path | None:
    """The file of a split, if the folder has one."""
    return next((folder / name for name in file_names(there) if (folder / name).is_file()), None)


def _what_is_there(folder: Path, wanted: str) -> str:
    files = sorted(
        str(path.relative_to(folder)) for pattern in ("*.json*", "*/*.json*") for path in folder.glob(pattern)
    )
    near = difflib.get_close_matches(wanted, files, n=1)
    hint = f" The nearest that is there is {near[0]}." if near else ""
    listed = ", ".join(files[:12]) + (f" and {len(files) - 12} more" if len(files) > 12 else "")
    return f"{hint} The folder has {listed or 'no such file'}. Add what is missing, or choose another forget set."


def check_splits(name: str, splits: Mapping[str, Rows]) -> None:
    """
    Refuse splits that a suite cannot evaluate.

    Args:
        name (`str`):
            A name from [`SUITES`].
        splits (`Mapping[str, Dataset]`):
            The rows of each split.

    Raises:
        `ValueError`: If there is no such suite or split, if a split is empty or lacks a column, or if a row holds
            something other than text. If the columns are those of another suite, the message names it.
    """
    suite = lookup(SUITES, name, "suite")
    for split, rows in splits.items():
        lookup(suite.splits, split, f"split of the {name} suite")
        if len(rows) == 0:
            raise ValueError(f"The {split} set is empty. Give it at least one row, or leave it out.")
        for index, row in enumerate(rows):
            missing = [column for column in suite.columns[split] if column not in row]
            if missing:
                where = f"The {split} set" if index == 0 else f"{split}[{index}]"
                raise ValueError(
                    f"{where} has no column {missing[0]!r}, which the {name} suite needs; its columns are "
                    f"{column_names(row)}.{_looks_like(row, name)}"
                )
        suite.check(rows, split)


def _looks_like(row: Mapping[str, Any], name: str) -> str:
    """Which other suite the columns of a row belong to, if that is plain."""
    others = {
        other: max((len(columns) for columns in suite.columns.values() if set(columns) <= row.keys()), default=0)
        for other, suite in SUITES.items()
        if other != name
    }
    most = max(others.values())
    found = [repr(other) for other, columns in others.items() if columns == most]
    # Many data sets have a text, or a question and an answer.
    if len(found) > 2 or most < 2 or set(row) <= {"question", "answer"}:
        return ""
    return f" They look like those of the {' or '.join(found)} suite."
