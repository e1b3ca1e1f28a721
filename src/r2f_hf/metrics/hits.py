"""Which tokens of an answer are the likeliest ones."""

from __future__ import annotations

from collections.abc import Sequence

from .checks import check_lists


def token_hits(rows: Sequence[Sequence[bool]], definition: str) -> list[list[bool]]:
    """
    Check the flags of each row, and leave out those that a definition does not count.

    Args:
        rows (`Sequence[Sequence[bool]]`):
            For each row, whether each of its tokens is the likeliest one.
        definition (`str`):
            `"open-unlearning"` leaves the last token of each row out. `"paper"` takes all.

    Returns:
        `list[list[bool]]`

    Raises:
        `ValueError`: If a row has no token.
    """
    flags = [numbers.astype(bool).tolist() for numbers in check_lists(rows, "predictions", "token")]
    if definition == "open-unlearning":
        flags = [row[:-1] for row in flags]
        for index, row in enumerate(flags):
            if not row:
                raise ValueError(
                    f'Row {index} has one token, and `definition="open-unlearning"` leaves out the last one.'
                )
    return flags
