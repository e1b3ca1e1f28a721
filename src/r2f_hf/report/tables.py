"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table


def print_table(title: str, rows: Mapping[str, Mapping[str, float | str]], columns: Sequence[str]) -> None:
    """
    Print a table of numbers, and words where there are some.

    Args:
        title (`str`):
            Title of the table.
        rows (`Mapping[str, Mapping[str, float | str]]`):
            From a row's name to its numbers by column.
        columns (`Sequence[str]`):
            Columns to show; a number that a row lacks is left blank. If there are more of them than rows, they go down
            and the rows across, so that the table stays narrow.
    """

    def cell(row: str, column: str) -> str:
        value = rows[row].get(column)
        if value is None or isinstance(value, str):
            return value or ""
        return f"{value:.3g}"

    across, down = list(rows), list(columns)
    if len(across) >= len(down):
        across, down = down, across
    table = Table("", title=title)
    for name in across:
        table.add_column(name.replace("_", " "), justify="right")
    for name in down:
        cells = [cell(other, name) if other in rows else cell(name, other) for other in across]
        table.add_row(name.replace("_", " "), *cells)
    # As wide as it needs: a number that is cut off is worth nothing.
    console = Console()
    needed = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    Console(width=max(console.width, needed)).print(table)
