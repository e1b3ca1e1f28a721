"""Attacks: ways to bring back what was forgotten. One file each."""

from .base import UNATTACKED, Attack, Target
from .registry import ATTACKS, chosen_attacks
from .runner import compare, curves, remark_on_rows, run_attacks


__all__ = [
    "ATTACKS",
    "UNATTACKED",
    "Attack",
    "Target",
    "chosen_attacks",
    "compare",
    "curves",
    "remark_on_rows",
    "run_attacks",
]
