"""Settings of the wrong kind or out of range, refused by name and not by an error somewhere in a library."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import Field, fields
from enum import Enum
from numbers import Integral, Real
from types import UnionType
from typing import Any, Union, get_args, get_origin

from transformers import TrainingArguments

from .lookup import lookup


# NumPy takes no other seeds, and every run seeds NumPy.
SEEDS = (0, 2**32 - 1)
# Least and largest value of settings of Trainer that Trainer itself does not check, or not by their name.
RANGES: dict[str, tuple[float, float]] = {
    "per_device_train_batch_size": (1, math.inf),
    "per_device_eval_batch_size": (1, math.inf),
    "gradient_accumulation_steps": (1, math.inf),
    "eval_accumulation_steps": (1, math.inf),
    "max_steps": (-1, math.inf),
    "num_train_epochs": (0, math.inf),
    "max_grad_norm": (0, math.inf),
    "seed": SEEDS,
    "data_seed": SEEDS,
    "logging_steps": (0, math.inf),
    "eval_steps": (0, math.inf),
    "save_steps": (0, math.inf),
    "dataloader_num_workers": (0, math.inf),
}

# Lists of names that may also be one text, a regular expression. For command lines they are annotated as lists.
PATTERNS = ("target_modules", "exclude_modules")


def check_kinds(config: Any, hints: Mapping[str, Any], enums: Mapping[str, type[Enum]]) -> None:
    """
    Refuse values of another kind than a field is annotated with, and numbers that are out of range. Numbers of NumPy
    become Python's, which can be written down with the run.

    Args:
        config (`Any`):
            A dataclass with settings.
        hints (`Mapping[str, Any]`):
            The annotations of its fields.
        enums (`Mapping[str, type[Enum]]`):
            What the values of further fields have to be members of.

    Raises:
        `ValueError`: Naming the setting and its value.
    """
    for each in fields(config):
        value = getattr(config, each.name)
        hint = hints[each.name]
        kinds = set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}
        if value is None and type(None) in kinds:
            continue
        enum = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum)), None)
        enum = enums.get(each.name, enum)
        if enum is not None and not isinstance(value, enum):
            lookup({str(member.value): member for member in enum}, value, each.name)
        wanted = _wanted(kinds - {type(None)} | ({str} if each.name in PATTERNS else set()), value)
        if wanted is not None:
            raise ValueError(f"`{each.name}` must be {wanted}, got {value!r}.")
        _check_choice(each, value)
        _check_range(each.name, value)
        if isinstance(value, str) and each.name in PATTERNS:
            _check_pattern(each.name, value)
        setattr(config, each.name, _plain(value))


def check_counts(config: Any, *names: str) -> None:
    """
    Refuse numbers below 1 of what there has to be at least one.

    Args:
        config (`Any`):
            An object with settings.
        names (`str`):
            Names of the settings. `None` is no number, and passes.

    Raises:
        `ValueError`: Naming the setting and its value.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")


def _wanted(kinds: set[Any], value: Any) -> str | None:
    """What a value should have been; `None` if it is that, or if it is not known."""
    flag = isinstance(value, bool) or type(value).__name__ == "bool_"
    if kinds == {bool}:
        return None if flag or (isinstance(value, Integral) and value in (0, 1)) else "True or False"
    if kinds == {int}:
        return None if isinstance(value, Integral) and not flag else "a whole number"
    if kinds == {float}:
        return None if isinstance(value, Real) and not flag and math.isfinite(value) else "a finite number"
    if kinds == {str}:
        # Half of a character can be neither tokenized nor written.
        whole = isinstance(value, str) and value.encode("utf-8", "replace").decode() == value
        return None if whole or isinstance(value, os.PathLike) else "text"
    if kinds <= {str, list[str]} and not (str in kinds and isinstance(value, str)):
        texts = value if isinstance(value, Sequence | set) and not isinstance(value, str) else [None]
        listed = all(isinstance(each, str) for each in texts)
        return None if listed else "a list of texts"
    # Trainer opens what is neither as a file, and a number is a file that is open already: 1 is the process's output.
    if kinds <= {str, dict, dict[str, Any], dict[str, bool]} and isinstance(value, Real | Sequence):
        return None if isinstance(value, str) and str in kinds else "options by name"
    return None


def _plain(value: Any) -> Any:
    """A number as Python's own, and names as a list."""
    if isinstance(value, Real) and hasattr(value, "item"):
        return value.item()
    return sorted(value) if isinstance(value, set) else value


def _check_pattern(name: str, value: str) -> None:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(
            f"`{name}` is {value!r}, which is no regular expression ({error}). Names of modules are given as a list."
        ) from error


def _check_choice(each: Field, value: Any) -> None:
    """Refuse what is none of the values that Trainer knows for a field of its own."""
    choices = each.metadata.get("choices")
    if choices and each.name in TrainingArguments.__dataclass_fields__:
        lookup({str(getattr(choice, "value", choice)): None for choice in choices}, value, each.name)


def _check_range(name: str, value: Any) -> None:
    least, most = RANGES.get(name, (-math.inf, math.inf))
    if isinstance(value, Real) and not least <= value <= most:
        raise ValueError(
            f"`{name}` must be "
            + (f"at least {least:g}" if most == math.inf else f"from {least:g} to {most}")
            + f", got {value!r}."
        )
