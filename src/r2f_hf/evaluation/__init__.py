"""Suites of metrics, and the function that runs one on a model."""

from .runner import run_suite
from .suites import SUITES, Remarks, Settings, Suite, check_splits, load_own, load_suite


__all__ = ["SUITES", "Remarks", "Settings", "Suite", "check_splits", "load_own", "load_suite", "run_suite"]
