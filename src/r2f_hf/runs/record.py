"""What the ledger will say of a run, gathered while it goes on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .ledger import LEDGER_FILE, Entry, append, read_ledger, unlearn_entry, write_ledger
from .undo import original_file


def read_ledger_of(folder: Path | None) -> list[Entry]:
    """The ledger of the folder that a model comes from; empty where it has none."""
    return read_ledger(folder) if folder is not None and (folder / LEDGER_FILE).is_file() else []


@dataclass
class RunRecord:
    """
    One request, on its way into the ledger.

    Args:
        rows (`list[list[str]]`):
            Texts of the forget rows.
        recipe (`dict[str, Any]`):
            The settings.
        earlier (`list[dict]`):
            Ledger of the model that the run begins with.
        hash_before (`str`, *optional*):
            Hash of its weights, once the run has begun.
        metrics (`dict[str, dict]`):
            What was measured `before`, in (`train`) and `after` it.
    """

    rows: list[list[str]]
    recipe: dict[str, Any]
    earlier: list[Entry]
    hash_before: str | None = None
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)

    def begin(self, folder: str | os.PathLike, weights: str) -> None:
        """
        A run begins, on weights with this hash. If it is not the first of its trainer, the one before is an entry now.

        Raises:
            `ValueError`: If the ledger in the output folder is damaged.
        """
        read_ledger_of(Path(folder))
        if self.hash_before is not None:
            self.earlier = append(self._without_this(self.earlier), self._entry(folder, weights, {}))
            self.metrics = {"before": self.metrics.get("after", {})}
        self.hash_before = weights

    def add_evaluation(self, metrics: Mapping[str, float]) -> None:
        """Take up what an evaluation outside of training has found."""
        self.metrics.setdefault("after" if "train" in self.metrics else "before", {}).update(metrics)

    def write(self, folder: str | os.PathLike, after: str, metrics: Mapping[str, Any]) -> None:
        """
        Write the ledger of a folder: what it, or the model that the run began with, has been through, and this run.

        Args:
            folder (`str` or `os.PathLike`):
                The folder that the model is saved to.
            after (`str`):
                Hash of the model's weights now.
            metrics (`Mapping[str, Any]`):
                What is known of a run that did not come to its end.
        """
        own = self._without_this(read_ledger_of(Path(folder)))
        if not own or own[-1]["weights"]["after"] != self.hash_before:
            own = self._without_this(self.earlier)
        write_ledger(folder, append(own, self._entry(folder, after, metrics)))

    def _without_this(self, entries: list[Entry]) -> list[Entry]:
        """Entries without this run's own, which is there if it has been saved before."""
        mine = entries and entries[-1]["kind"] == "unlearn" and entries[-1]["weights"]["before"] == self.hash_before
        return entries[:-1] if mine else entries

    def _entry(self, folder: str | os.PathLike, after: str, metrics: Mapping[str, Any]) -> Entry:
        original = original_file(folder, self.hash_before)
        undo = {"file": original.name, "bytes": original.stat().st_size} if original.is_file() else None
        metrics = dict(metrics) | self.metrics.get("train", {})
        metrics |= {name: self.metrics[name] for name in ("before", "after") if self.metrics.get(name)}
        return unlearn_entry(self.rows, self.recipe, metrics, {"before": self.hash_before, "after": after}, undo)
