"""Suites of metrics, and the functions that run one on a model."""

from .depth import run_depth
from .runner import run_suite
from .suites import SUITES, Remarks, Settings, Suite, check_splits, load_own, load_suite
from .writing import write_answers


__all__ = [
    "SUITES",
    "Remarks",
    "Settings",
    "Suite",
    "check_splits",
    "load_own",
    "load_suite",
    "run_depth",
    "run_suite",
    "write_answers",
]
