"""Scoring, generation and suites."""

from .runner import run_suite, summarise
from .suites import SUITES, load_suite


__all__ = ["SUITES", "load_suite", "run_suite", "summarise"]
