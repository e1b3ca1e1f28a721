"""`r2f ledger MODEL`: what a model was asked to forget."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial

from ..report import print_table
from ..runs.ledger import read_ledger, standing_requests


COLUMNS = ("time", "kind", "rows", "steps", "before", "after", "status")


def build_parser() -> argparse.ArgumentParser:
    """The arguments of `r2f ledger`."""
    parser = argparse.ArgumentParser(prog="r2f ledger", description="List what a model was asked to forget.")
    parser.add_argument("model", help="a model folder that r2f has written")
    return parser


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Read the arguments of `r2f ledger`, and the ledger of the model folder."""
    folder = build_parser().parse_args(argv).model
    return partial(show, folder, read_ledger(folder))


def show(folder: str, entries: list[dict]) -> None:
    """Print the entries as a table, the oldest first."""
    standing = standing_requests(entries)
    table = {}
    for number, entry in enumerate(entries, 1):
        row = {"time": entry["time"], "kind": entry["kind"]}
        row |= {place: entry["weights"][place][:12] for place in ("before", "after")}
        if entry["kind"] == "undo":
            row["status"] = f"undoes {entry['undoes']}"
        else:
            row["rows"], row["steps"] = len(entry["request"]["rows"]), entry["metrics"].get("steps")
            row["status"] = "stands" if number in standing else "undone"
        table[str(number)] = row
    print_table(f"Ledger of {folder}", table, COLUMNS)
