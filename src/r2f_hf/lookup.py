"""Lookup by name, with a helpful message for a misspelled one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar


T = TypeVar("T")


def lookup(table: Mapping[str, T], name: str, kind: str, list_all: bool = True) -> T:
    """
    Look up the entry of a table by name.

    Args:
        table (`Mapping[str, T]`):
            The entries to choose from, by name.
        name (`str`):
            The name to look up.
        kind (`str`):
            The kind of entry, for the message.
        list_all (`bool`, *optional*, defaults to `True`):
            Whether the message lists all names. A long list does not help.

    Returns:
        `T`: The entry.

    Raises:
        `ValueError`: If there is no such name. The message suggests the nearest one.
    """
    # What is no text, a list for one, may not even be looked up.
    if isinstance(name, str) and name in table:
        return table[name]
    near = difflib.get_close_matches(str(name), table, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    available = f" Available: {', '.join(sorted(table))}." if list_all else ""
    raise ValueError(f"Unknown {kind}: {name!r}.{hint}{available}")
