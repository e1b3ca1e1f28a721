"""The `r2f` command. Nothing here imports torch before a subcommand is known, so that `r2f --help` answers at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from .. import __version__


COMMANDS = {
    "unlearn": "make a model forget rows, by Recover-to-Forget",
    "evaluate": "measure what a model has forgotten and what it has kept",
    "attack": "try to bring back what a model has forgotten",
    "report": "write what is known about runs as one HTML file, to be shown",
    "collect": "ask a model what it knows about a person, for rows to forget and to keep",
    "check-data": "look for near-duplicates, unknown and too long rows before a run",
    "train-decoder": "train a gradient decoder on a proxy model",
    "decode": "reconstruct the full gradient behind a LoRA step, from two saved adapters",
    "ledger": "list what a model was asked to forget",
    "verify": "check that a model's weights are those that its ledger accounts for",
    "undo": "restore the weights from before the last request, bit for bit",
    "completion": "print a script by which the shell completes r2f",
}

# They change no model. What is wrong with the rows or the model may show only once it is loaded.
MEASURING = ("evaluate", "attack")


def main(argv: Sequence[str] | None = None) -> None:
    """
    Entry point of `r2f`.

    Args:
        argv (`Sequence[str]`, *optional*):
            The arguments after `r2f`. Defaults to those of the process.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="r2f",
        description="Recover-to-Forget unlearning for causal language models.",
        epilog="`r2f COMMAND --help` lists the options; a recipe (`--config FILE.yaml`) takes the same names.",
    )
    parser.add_argument("--version", action="version", version=f"r2f-hf {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    # Everything after the name of the command is for the command itself, also `--help`.
    chosen = parser.parse_args(argv[:1]).command
    try:
        execute = import_module(f".{chosen.replace('-', '_')}", __name__).prepare(argv[1:])
    except (ValueError, OSError) as error:
        # The user can correct these mistakes. So the message stands alone, without a traceback through the libraries.
        parser.exit(2, f"r2f {chosen}: error: {error}\n")
    try:
        execute()
    except (ValueError, OSError) as error:
        if chosen not in MEASURING or not (isinstance(error, OSError) or is_own(error)):
            raise
        parser.exit(2, f"r2f {chosen}: error: {error}\n")


def is_own(error: Exception) -> bool:
    """Whether this package says what is wrong, and not a library."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith(
        f"{__package__.split('.')[0]}."
    )
