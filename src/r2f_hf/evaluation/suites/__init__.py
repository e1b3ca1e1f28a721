"""Benchmarks, one file each: which splits they have, and what is computed on them."""

from .base import Remarks, Settings, Suite
from .own import load_own
from .registry import SUITES, check_splits, load_suite


__all__ = ["SUITES", "Remarks", "Settings", "Suite", "check_splits", "load_own", "load_suite"]
