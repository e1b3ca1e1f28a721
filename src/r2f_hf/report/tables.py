"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table


def print_table(title: str, rows: Mapping[str, Mapping[str, float]], columns: Sequence[str]) -> None:
    """
    Print a table of numbers.

    Args:
        title (`str`):
            Title of the table.
        rows (`Mapping[str, Mapping[str, float]]`):
            From a row's name to its numbers by column.
        columns (`Sequence[str]`):
            Columns to show; a number that a row lacks is left blank.
    """
    table = Table(title=title)
    table.add_column("")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for name, values in rows.items():
        cells = [values.get(column) for column in columns]
        table.add_row(name, *("" if value is None else f"{value:.3g}" for value in cells))
    Console().print(table)
