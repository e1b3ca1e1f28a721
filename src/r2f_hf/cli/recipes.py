"""From a recipe (YAML) and flags to dataclasses."""

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
    Read a recipe (`--config FILE.yaml`) and the flags that override it.

    Args:
        command (`str`):
            The subcommand, for the usage line.
        dataclass_types (`Sequence[type]`):
            Dataclasses whose fields are the options.
        argv (`Sequence[str]`):
            The subcommand's arguments.

    Returns:
        `tuple`: One instance of each dataclass.

    Raises:
        `ValueError`: For a key or a flag that does not exist (the nearest name is suggested), or a recipe that is not
            YAML.
        `FileNotFoundError`: If the recipe is not there.
    """
    parser = TrlParser(
        dataclass_types,
        prog=f"r2f {command}",
        usage=f"r2f {command} [--config RECIPE.yaml] [--option value ...]",
        description="Every option is also a key of a recipe (--config RECIPE.yaml); what is given here overrides it.",
    )
    if R2FConfig in dataclass_types:
        group_options(parser)
    options = {action.dest: action for action in parser._actions}
    # TrlParser knows `--config FILE` alone.
    argv = [part for arg in argv for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
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
            if key != "env":
                check_option(key, options, f"key in {path}")
    *parsed, unknown = parser.parse_args_and_config(argv, return_remaining_strings=True)
    for flag in unknown:
        check_option(flag.removeprefix("--").split("=")[0], options, "option")
    return tuple(parsed)


def check_option(name: str, options: Mapping[str, Any], kind: str) -> None:
    """Refuse an option that a command does not have; the message names the nearest one."""
    if name not in options and (name == "use_peft" or name.startswith("lora_")):
        raise ValueError(f"Unknown {kind}: {name!r}: R2F brings its own adapter. See `rank` and `target_modules`.")
    lookup(options, name, kind, list_all=False)


def group_options(parser: TrlParser) -> None:
    """Show R2F's own options first in the help, in their groups, and those of Trainer last."""
    others = parser._optionals
    others.title = "Options of transformers.TrainingArguments"
    # Dataclasses with an `_argument_group_name` have their groups already: the data's comes first, the model's last.
    first, *rest = (group for group in parser._action_groups if group not in (parser._positionals, others))
    own = []
    for title, names in GROUPS.items():
        group = parser.add_argument_group(title)
        for action in [action for action in others._group_actions if action.dest in names]:
            others._group_actions.remove(action)
            group._group_actions.append(action)
        own.append(group)
    parser._action_groups = [first, *own, *rest, others]
