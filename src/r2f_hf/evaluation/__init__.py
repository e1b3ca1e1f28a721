"""Suites of metrics, and the function that runs one on a model."""

from .runner import run_suite
from .suites import SUITES, Suite, load_suite


__all__ = ["SUITES", "Suite", "load_suite", "run_suite"]
