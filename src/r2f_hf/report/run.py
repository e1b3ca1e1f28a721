"""A run as it lies on the disk: its ledger, its logs, and what was measured on its model."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME

from ..runs.details import Details
from ..runs.ledger import LEDGER_FILE, Entry, read_ledger, standing_requests
from ..runs.undo import UNDO_FOLDER


logger = logging.getLogger(__name__)

# Of the `report.json` of `r2f evaluate` and of `r2f attack`. They rise when a field goes or means something else, and
# stay when one is added.
EVALUATION_SCHEMA = "r2f-evaluate/1"
ATTACK_SCHEMA = "r2f-attack/1"

# The splits whose rows a report shows, of the suite that has them.
FORGET_SPLITS = ("forget", "unlearn", "verbmem_f", "forget_level1")
RETAIN_SPLITS = ("retain", "retention", "knowmem_r", "neighbor_level1")


@dataclass(frozen=True)
class Run:
    """
    What is known about a run.

    Args:
        folder (`Path`):
            The folder of its model.
        entries (`list[dict]`):
            The ledger, the oldest entry first.
        number (`int`):
            The entry of the run, counted from 1: the last one that is no undoing.
        details ([`~r2f_hf.runs.details.Details`]):
            What is next to the ledger.
        logs (`list[dict]`):
            What Trainer has logged.
        evaluations (`list[dict]`):
            The reports of `r2f evaluate` on these weights.
        attacks (`list[dict]`):
            The reports of `r2f attack` on these weights.
        rows (`dict[str, dict[str, list[float]]]`):
            By set (`forget`, `retain`) and model (`before`, `after`, `gold`) the probability of each row's answer, or
            another number from 0 to 1.
        outdated (`list[str]`):
            Reports that name this model, but are of other weights.
    """

    folder: Path
    entries: list[Entry]
    number: int
    details: Details
    logs: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    attacks: list[dict[str, Any]] = field(default_factory=list)
    rows: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)
    outdated: list[str] = field(default_factory=list)

    @property
    def entry(self) -> Entry:
        """The ledger's entry of the run."""
        return self.entries[self.number - 1]

    @property
    def recipe(self) -> dict[str, Any]:
        """The settings of the run."""
        return self.entry["recipe"]

    @property
    def undone(self) -> bool:
        """Whether the run was undone."""
        return self.number not in standing_requests(self.entries)

    @property
    def can_be_undone(self) -> bool:
        """Whether the weights from before the run are there."""
        undo = self.entry["undo"]
        return not self.undone and undo is not None and (self.folder / UNDO_FOLDER / undo["file"]).is_file()


def read_run(folder: str | os.PathLike) -> Run:
    """
    Read all that a folder, and the reports about its model, say about the last run.

    Args:
        folder (`str` or `os.PathLike`):
            The output folder of a run, or the folder that this folder lies in. The reports of `r2f evaluate` and
            `r2f attack` are looked for there, next to the model, and in the current folder, each also one folder
            deeper. A report counts if it is of the weights that the run has left.

    Raises:
        `FileNotFoundError`: If no run has written there.
        `ValueError`: If several have, or if a file is damaged.
    """
    asked = Path(folder)
    model = find_model(asked)
    entries = read_ledger(model)
    numbers = [number for number, entry in enumerate(entries, 1) if entry["kind"] == "unlearn"]
    # Of an undone run too these are the weights that its figures are of.
    weights = entries[numbers[-1] - 1]["weights"]["after"]
    evaluations, attacks, outdated = [], [], []
    rows: dict[str, dict[str, list[float | None]]] = {}
    for file, report in reports(dict.fromkeys((asked, model, model.parent, Path()))):
        if report.get("weights") != weights:
            if named(report) is not None and Path(named(report)).resolve() == model.resolve():
                outdated.append(f"{file.parent.name}/{file.name}")
        elif report["schema"] == EVALUATION_SCHEMA:
            evaluations.append(report)
            rows = rows or read_rows(file.parent)
        else:
            attacks.append(report)
    state = model / TRAINER_STATE_NAME
    details = Details.read(model)
    return Run(
        folder=model,
        entries=entries,
        number=numbers[-1],
        details=details,
        logs=read_json(state)["log_history"] if state.is_file() else [],
        evaluations=evaluations,
        attacks=attacks,
        rows=rows or {split: by_model(details.rows, split) for split in ("forget", "retain")},
        outdated=outdated,
    )


def find_model(folder: Path) -> Path:
    """The folder with a ledger: this one, or the only one that lies in it."""
    if (folder / LEDGER_FILE).is_file():
        return folder
    found = sorted(file.parent for file in folder.glob(f"*/{LEDGER_FILE}"))
    if not found:
        raise FileNotFoundError(
            f"There is no {LEDGER_FILE} in {folder}, nor in a folder in it: r2f has not made a model there. Name the "
            "output folder of a run."
        )
    if len(found) > 1:
        raise ValueError(f"There are several runs in {folder}: {', '.join(map(str, found))}. Name one, or each.")
    return found[0]


def reports(places: Mapping[Path, None]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The reports of `r2f evaluate` and `r2f attack` in these folders, and one folder deeper, each once."""
    seen = set()
    for place in places:
        for file in (place / "report.json", *sorted(place.glob("*/report.json"))):
            if not file.is_file() or file.resolve() in seen:
                continue
            seen.add(file.resolve())
            try:
                report = read_json(file)
            except ValueError as error:
                # Other files have this name too, and need not be JSON.
                logger.warning("Left out: %s", error)
                continue
            if isinstance(report, dict) and report.get("schema") in (EVALUATION_SCHEMA, ATTACK_SCHEMA):
                yield file, report


def named(report: Mapping[str, Any]) -> str | None:
    """The model that a report names."""
    return report["model"] if report["schema"] == EVALUATION_SCHEMA else report["models"]["unlearned"]


def read_rows(folder: Path) -> dict[str, dict[str, list[float | None]]]:
    """The numbers of each row from the statistics that `r2f evaluate` has left in a folder."""
    found: dict[str, dict[str, list[float | None]]] = {}
    for kind, splits in (("forget", FORGET_SPLITS), ("retain", RETAIN_SPLITS)):
        for split in splits:
            of_models = {}
            for model, place in (("before", "original"), ("after", ""), ("gold", "gold")):
                file = folder / place / f"{split}.json"
                values = row_values(read_json(file)) if file.is_file() else None
                if values is not None:
                    of_models[model] = values
            if "after" in of_models:
                found[kind] = of_models
                break
    return found


def row_values(statistics: Mapping[str, Any]) -> list[float] | None:
    """A number from 0 to 1 per row: the probability of the answer, or else how much of it is generated."""
    if "answer" in statistics:
        return [math.exp(value) for value in statistics["answer"]]
    if "loss" in statistics:
        return [math.exp(-value) for value in statistics["loss"]]
    return statistics.get("recall", statistics.get("score"))


def by_model(rows: Mapping[str, Mapping[str, Sequence[float | None]]], split: str) -> dict[str, list[float | None]]:
    """The rows of one set, from those of each evaluation."""
    return {when: list(sets[split]) for when, sets in rows.items() if split in sets}


def read_json(file: Path) -> Any:
    """
    Read a JSON file.

    Raises:
        `ValueError`: If it is damaged.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}). Delete it, and repeat the command that wrote it.") from error
