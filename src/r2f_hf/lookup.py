"""Choosing by name, with a useful answer to a misspelt one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar


T = TypeVar("T")


def lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    """
    The entry of a table by name.

    Args:
        table (`Mapping[str, T]`):
            What there is to choose from.
        name (`str`):
            The name asked for.
        kind (`str`):
            What the table holds, for the message.

    Returns:
        `T`: The entry.

    Raises:
        `ValueError`: If there is no such name; the message suggests the nearest one and lists all.
    """
    if name in table:
        return table[name]
    near = difflib.get_close_matches(str(name), table, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"Unknown {kind} {name!r}.{hint} Available: {', '.join(sorted(table))}.")
