"""The ledger's entry for a run, gathered while the run goes on."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .details import Details
from .ledger import LEDGER_FILE, Entry, append, read_ledger, unlearn_entry, write_ledger
from .undo import original_file


logger = logging.getLogger(__name__)


def read_ledger_of(folder: Path | None) -> list[Entry]:
    """Read the ledger of the folder that a model comes from. It is empty if there is none."""
    return read_ledger(folder) if folder is not None and (folder / LEDGER_FILE).is_file() else []


def check_can_be_written(description: Mapping[str, Any]) -> None:
    """
    Refuse settings that the record of a run cannot hold. It is written when the weights have changed already.

    Raises:
        `ValueError`: Naming the setting.
    """
    for name, value in description.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"`{name}` cannot be written down with the run ({error}). Give it as texts, finite numbers, lists and "
                "dictionaries."
            ) from error


@dataclass
class RunRecord:
    """
    What the ledger will say about one request.

    Args:
        rows (`list[list[str]]`):
            The texts of the forget rows.
        recipe (`dict[str, Any]`):
            The settings of the run, seeds included.
        earlier (`list[dict]`):
            The ledger of the model that the run begins with.
        hash_before (`str`, *optional*):
            Hash of this model's weights. It is there once the run has begun.
        metrics (`dict[str, dict]`):
            What was measured `before`, during (`train`) and `after` the run.
        details ([`~r2f_hf.runs.details.Details`]):
            What a report needs in addition to the ledger.
    """

    rows: list[list[str]]
    recipe: dict[str, Any]
    earlier: list[Entry]
    hash_before: str | None = None
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    details: Details = field(default_factory=Details)

    def begin(self, folder: str | os.PathLike, weights: str) -> None:
        """
        Begin a run on weights with this hash. If the trainer has run before, that run becomes an entry of its own.

        Raises:
            `ValueError`: If the ledger in the output folder is damaged.
        """
        read_ledger_of(Path(folder))
        if self.hash_before is not None:
            self.earlier = append(self._without_this(self.earlier), self._entry(folder, weights, {}))
            self.metrics = {"before": self.metrics.get("after", {})}
            self.details.rows = {"before": self.details.rows.get("after", {})}
        self.hash_before = weights

    def add_evaluation(self, metrics: Mapping[str, float]) -> None:
        """Record the metrics of an evaluation outside of training."""
        self.metrics.setdefault(self._when, {}).update(metrics)

    def add_rows(self, name: str, probabilities: list[float]) -> None:
        """Record the probability of each row of a set, from an evaluation outside of training."""
        self.details.rows.setdefault(self._when, {})[name] = probabilities

    @property
    def _when(self) -> str:
        return "after" if "train" in self.metrics else "before"

    def write(self, folder: str | os.PathLike, after: str, metrics: Mapping[str, Any]) -> None:
        """
        Write the ledger of a folder, with this run as the last entry.

        The entries before it are those of the folder's ledger, if they lead to the weights that this run began with.
        Otherwise they are those of the model that it began with.

        Args:
            folder (`str` or `os.PathLike`):
                The folder that the model is saved to.
            after (`str`):
                Hash of the model's weights now.
            metrics (`Mapping[str, Any]`):
                What is known about the run, in case it was interrupted. The metrics of a whole run take precedence.
        """
        entries = self._without_this(read_ledger_of(Path(folder)))
        if not entries or entries[-1]["weights"]["after"] != self.hash_before:
            entries = self._without_this(self.earlier)
        if after == self.hash_before and metrics.get("steps"):
            logger.warning(
                "After %d steps no weight has changed: what is saved knows what it knew. Either each step was skipped "
                "(see `r2f/skipped_steps` in the logs), or it was too small: look at `learning_rate`, at its schedule "
                "(`warmup_steps`), and at `max_grad_norm`.",
                metrics["steps"],
            )
        write_ledger(folder, append(entries, self._entry(folder, after, metrics)))

    def _without_this(self, entries: list[Entry]) -> list[Entry]:
        """The entries without that of this run, which is the last one if the run has been saved before."""
        saved = entries and entries[-1]["kind"] == "unlearn" and entries[-1]["weights"]["before"] == self.hash_before
        return entries[:-1] if saved else entries

    def _entry(self, folder: str | os.PathLike, after: str, metrics: Mapping[str, Any]) -> Entry:
        """The entry of this run."""
        original = original_file(folder, self.hash_before)
        undo = {"file": original.name, "bytes": original.stat().st_size} if original.is_file() else None
        metrics = dict(metrics) | self.metrics.get("train", {})
        metrics |= {name: self.metrics[name] for name in ("before", "after") if self.metrics.get(name)}
        return unlearn_entry(self.rows, self.recipe, metrics, {"before": self.hash_before, "after": after}, undo)
