"""`r2f verify MODEL`: whether the weights are those that the ledger accounts for."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ..runs.ledger import first_break, read_ledger
from ..runs.undo import UNDO_FOLDER
from ..runs.weights import saved_weights_hash


def build_parser() -> argparse.ArgumentParser:
    """The arguments of `r2f verify`."""
    parser = argparse.ArgumentParser(
        prog="r2f verify",
        description="Check a model folder's ledger and weights, and name the first entry that does not fit.",
    )
    parser.add_argument("model", help="a model folder that r2f has written")
    return parser


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Read the arguments of `r2f verify`, and the ledger. A damaged ledger is refused."""
    folder = build_parser().parse_args(argv).model
    return partial(verify, folder, read_ledger(folder))


def verify(folder: str, entries: list[dict]) -> None:
    """Compare the weights with the ledger. The command ends with status 1 if they do not fit."""
    mismatch = first_break(entries, saved_weights_hash(folder))
    if mismatch is not None:
        raise SystemExit(f"r2f verify: {folder}: {mismatch}.")
    counted = "1 entry" if len(entries) == 1 else f"{len(entries)} entries, each following from the one before"
    print(f"{folder} is as its ledger says: {counted}, and the weights of the last one.")
    kept = Path(folder) / UNDO_FOLDER
    if any(kept.glob("*.safetensors")):
        print(
            f"Warning: {kept} holds weights from before. Whoever has them and these can extract what was forgotten. "
            "Delete the folder once nobody will undo a run."
        )
