"""What a suite is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


Rows = Sequence[Mapping[str, Any]]
