"""`r2f completion SHELL`: a script by which the shell completes the commands and their options."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module

import shtab

from . import COMMANDS
from .recipes import build_parser as recipe_parser


def build_parser() -> argparse.ArgumentParser:
    """The arguments of `r2f completion`."""
    parser = argparse.ArgumentParser(
        prog="r2f completion",
        description="Print a script by which the shell completes r2f: its commands, their options and file names.",
    )
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS, help="the shell")
    return parser


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Read the arguments of `r2f completion`."""
    return partial(show, build_parser().parse_args(argv).shell)


def show(shell: str) -> None:
    """Print the script. It is complete in itself: completing runs neither Python nor r2f."""
    print(shtab.complete(whole_parser(), shell))


def whole_parser() -> argparse.ArgumentParser:
    """All commands and their options in one parser."""
    whole = argparse.ArgumentParser(prog="r2f")
    commands = whole.add_subparsers()
    for name, text in COMMANDS.items():
        module = import_module(f".{name.replace('-', '_')}", __package__)
        options = getattr(module, "OPTIONS", None)
        parser = module.build_parser() if options is None else recipe_parser(name, options)
        if options is not None:
            parser.add_argument("--config")
        for action in parser._actions:
            # A value without a list of choices may be the name of a file, as it may be in the shell.
            if not action.choices and action.nargs != 0:
                action.complete = shtab.FILE
        commands.add_parser(name, help=text, parents=[parser], add_help=False)
    return whole
