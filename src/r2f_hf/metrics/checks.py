"""What every metric checks: a number that makes no sense is refused by the name of its row, and never scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..lookup import lookup


def check_definition(definition: str, *known: str) -> str:
    """
    Check the name of a definition: `"paper"`, or a project whose code departs from the paper.

    Args:
        definition (`str`):
            The name.
        known (`str`):
            The names that the metric has.

    Returns:
        `str`: The name.

    Raises:
        `ValueError`: If there is no such definition. The message suggests the nearest one.
    """
    return lookup({name: name for name in known}, definition, "definition")


def check_numbers(
    values: Sequence[float],
    name: str,
    low: float = -np.inf,
    high: float = np.inf,
    infinite: bool = False,
    least: int = 1,
) -> np.ndarray:
    """
    Check a number per row.

    Args:
        values (`Sequence[float]`):
            The numbers.
        name (`str`):
            What the message calls them.
        low, high (`float`, *optional*):
            The range that they have to lie in.
        infinite (`bool`, *optional*, defaults to `False`):
            Whether they may be infinite.
        least (`int`, *optional*, defaults to `1`):
            How many rows there have to be.

    Returns:
        `np.ndarray`: The numbers, fp64.

    Raises:
        `ValueError`: For the first row that is NaN, infinite or outside the range, and for too few rows.
    """
    numbers = np.array([np.nan if value is None else value for value in values], dtype=float)
    if len(numbers) < least:
        raise ValueError(f"`{name}` has {len(numbers)} rows, and this metric needs at least {least}: give it more.")
    for row, number in enumerate(numbers):
        if np.isnan(number) or (np.isinf(number) and not infinite):
            raise ValueError(
                f"Row {row} of `{name}` is NaN or infinite: the model that it comes from gives no usable numbers."
            )
        if not low <= number <= high:
            raise ValueError(f"Row {row} of `{name}` is {number:.6g}. These are numbers in [{low:g}, {high:g}].")
    return numbers


def check_lists(rows: Sequence[Sequence[Any]], name: str, of: str, infinite: bool = False) -> list[np.ndarray]:
    """
    Check a list of numbers per row.

    Args:
        rows (`Sequence[Sequence[float]]`):
            The lists.
        name (`str`):
            What the message calls them.
        of (`str`):
            What a list holds one number of, such as `"token"`.
        infinite (`bool`, *optional*, defaults to `False`):
            Whether the numbers may be infinite.

    Returns:
        `list[np.ndarray]`: The lists, fp64.

    Raises:
        `ValueError`: For the first row that has no number, or one that is NaN or infinite; and if there is no row.
    """
    if len(rows) == 0:
        raise ValueError(f"`{name}` has no rows.")
    checked = []
    for index, row in enumerate(rows):
        if row is None or len(row) == 0:
            raise ValueError(f"Row {index} of `{name}` has no {of}: fill it in, or leave the row out.")
        numbers = np.array([np.nan if value is None else value for value in row], dtype=float)
        if np.isnan(numbers).any() or (np.isinf(numbers).any() and not infinite):
            raise ValueError(
                f"Row {index} of `{name}` holds a number that is NaN or infinite: the model that it comes from gives "
                "no usable numbers."
            )
        checked.append(numbers)
    return checked


def check_rows(**columns: Sequence[Any]) -> None:
    """
    Check that columns have equally many rows.

    Args:
        columns (`Sequence`):
            The columns by their names.

    Raises:
        `ValueError`: If they do not.
    """
    if len({len(values) for values in columns.values()}) > 1:
        counts = ", ".join(f"{len(values)} rows of `{name}`" for name, values in columns.items())
        raise ValueError(f"There are {counts}. Give as many rows of each.")
