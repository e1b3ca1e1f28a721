"""`r2f undo MODEL`: restores the weights from before the last request, bit for bit."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial

from ..runs.undo import Undo, prepare_undo


def build_parser() -> argparse.ArgumentParser:
    """The arguments of `r2f undo`."""
    parser = argparse.ArgumentParser(
        prog="r2f undo",
        description="Restore the weights from before the last run that is not undone yet, bit for bit.",
    )
    parser.add_argument("model", help="a model folder that r2f has written")
    return parser


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Read the arguments of `r2f undo`, and check that the weights can be restored."""
    return partial(undo, prepare_undo(build_parser().parse_args(argv).model))


def undo(prepared: Undo) -> None:
    """Write the restored model, and say what was undone."""
    freed = prepared.file.stat().st_size if prepared.file.is_file() else 0
    prepared.write()
    print(f"Entry {prepared.number} is undone: {prepared.folder} has the weights from before it again.")
    print(f"Their hash is {prepared.entries[-1]['weights']['after']}. {freed / 1e6:.1f} MB of disk are free again.")
