"""From numbers to files and tables."""

from .tables import print_table


__all__ = [
    "print_table",
]
