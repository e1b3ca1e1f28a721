"""Benchmarks, one file each: which splits they have, and what is computed on them."""

from .base import Suite
from .registry import SUITES, load_suite


__all__ = ["SUITES", "Suite", "load_suite"]
