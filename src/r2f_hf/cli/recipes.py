"""Reads a recipe (YAML) and flags into dataclasses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from trl import TrlParser

from ..config import GROUPS, R2FConfig
from ..lookup import lookup


def parse_recipe(command: str, dataclass_types: Sequence[type], argv: Sequence[str]) -> tuple[Any, ...]:
    """
    Read a recipe (`--config FILE.yaml`) and the flags that override it. `--model` is short for `--model_name_or_path`.

    Args:
        command (`str`):
            Name of the subcommand, for the usage line.
        dataclass_types (`Sequence[type]`):
            The dataclasses whose fields are the options.
        argv (`Sequence[str]`):
            The subcommand's arguments.

    Returns:
        `tuple`: One instance of each dataclass, in the order given.

    Raises:
        `ValueError`: If a key or a flag does not exist, with the nearest name that does, or if the recipe is not YAML.
        `FileNotFoundError`: If there is no such recipe.
    """
    parser = build_parser(command, dataclass_types)
    options = {action.dest: action for action in parser._actions}
    # TrlParser only knows `--config FILE`, not `--config=FILE`.
    argv = [part for arg in argv for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
    if "model_name_or_path" in options:
        # The short form would be ambiguous: `model_revision` begins with it too.
        argv = [f"--model_name_or_path{arg[7:]}" if arg.split("=")[0] == "--model" else arg for arg in argv]
    if "--config" in argv:
        if argv[-1] == "--config":
            raise ValueError("`--config` needs a recipe after it: --config FILE.yaml")
        path = Path(argv[argv.index("--config") + 1])
        if not path.is_file():
            raise FileNotFoundError(f"There is no recipe {path}.")
        try:
            recipe = yaml.safe_load(path.read_text())
        except yaml.YAMLError as error:
            raise ValueError(f"The recipe {path} is not YAML: {error}") from error
        for key in recipe if isinstance(recipe, dict) else ():
            # TrlParser sets environment variables from this key.
            if key != "env":
                check_option(key, options, f"key in {path}")
    *parsed, unknown = parser.parse_args_and_config(argv, return_remaining_strings=True)
    for flag in unknown:
        check_option(flag.removeprefix("--").split("=")[0], options, "option")
    return tuple(parsed)


def build_parser(command: str, dataclass_types: Sequence[type]) -> TrlParser:
    """The parser of a subcommand whose options are the fields of dataclasses."""
    parser = TrlParser(
        dataclass_types,
        prog=f"r2f {command}",
        usage=f"r2f {command} [--config RECIPE.yaml] [--option value ...]",
        description="Every option is also a key of a recipe (--config RECIPE.yaml). Options override the recipe.",
    )
    if R2FConfig in dataclass_types:
        group_options(parser)
    return parser


def check_option(name: str, options: Mapping[str, Any], kind: str) -> None:
    """Refuse an option that a command does not have. The message names the nearest one that it has."""
    if name not in options and (name == "use_peft" or name.startswith("lora_")):
        raise ValueError(f"Unknown {kind}: {name!r}: R2F brings its own adapter. See `rank` and `target_modules`.")
    lookup(options, name, kind, list_all=False)


def group_options(parser: TrlParser) -> None:
    """Order the help: R2F's own options come first, in their groups, and those of Trainer last."""
    others = parser._optionals
    others.title = "Options of transformers.TrainingArguments"
    # A dataclass with an `_argument_group_name` already has a group: the data's comes first, and the model's last.
    first, *rest = (group for group in parser._action_groups if group not in (parser._positionals, others))
    r2f_groups = []
    for title, names in GROUPS.items():
        group = parser.add_argument_group(title)
        for action in [action for action in others._group_actions if action.dest in names]:
            others._group_actions.remove(action)
            group._group_actions.append(action)
        r2f_groups.append(group)
    parser._action_groups = [first, *r2f_groups, *rest, others]
