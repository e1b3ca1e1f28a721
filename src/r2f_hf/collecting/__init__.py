"""From a person's name to rows to forget and rows to keep: the model itself says what it knows."""

from .asking import Interview
from .collector import Collector
from .rows import CollectedRow, CollectedSet, Thresholds


__all__ = ["CollectedRow", "CollectedSet", "Collector", "Interview", "Thresholds"]
