"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table


def print_table(title: str, rows: Mapping[str, Mapping[str, float | str]], columns: Sequence[str]) -> None:
    """
    Print a table of numbers and words.

    Numbers are shown with three significant digits. If there are more columns than rows, the table is turned: the
    columns go down and the rows go across, so that it stays narrow.

    Args:
        title (`str`):
            Title of the table.
        rows (`Mapping[str, Mapping[str, float | str]]`):
            From the name of each row to its values by column.
        columns (`Sequence[str]`):
            The columns to show. A value that a row does not have is left blank.
    """

    def cell(row: str, column: str) -> str:
        value = rows[row].get(column)
        if value is None or isinstance(value, str):
            return value or ""
        return f"{value:.3g}"

    across, down = list(rows), list(columns)
    if len(across) >= len(down):
        across, down = down, across
    # Otherwise a title would be broken to the width of a narrow table.
    table = Table("", title=title, min_width=len(title))
    for name in across:
        table.add_column(name.replace("_", " "), justify="right")
    for name in down:
        cells = [cell(other, name) if other in rows else cell(name, other) for other in across]
        table.add_row(name.replace("_", " "), *cells)
    # A narrow terminal would cut numbers off. So the table is printed as wide as it has to be.
    console = Console()
    needed = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    Console(width=max(console.width, needed)).print(table)
