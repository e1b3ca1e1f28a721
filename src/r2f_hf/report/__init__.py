"""From numbers to tables."""

from .tables import print_table


__all__ = [
    "print_table",
]
