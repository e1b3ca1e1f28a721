"""From numbers to files and tables."""

from ..files import write_json
from .tables import print_table


__all__ = ["print_table", "write_json"]
