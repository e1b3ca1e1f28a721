"""Scoring, generation and suites."""

from .runner import HEADLINE, run_suite, summarise
from .suites.registry import SUITES, load_suite


__all__ = ["HEADLINE", "SUITES", "load_suite", "run_suite", "summarise"]
