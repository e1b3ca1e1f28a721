"""JSON files that are whole or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: str | Path, content: Any) -> None:
    """
    Write JSON beside its destination and rename it into place.

    Args:
        path (`str` or `Path`):
            Destination; missing folders are made.
        content (`Any`):
            What to write.

    Raises:
        `ValueError`: If a number is NaN or infinite.
    """
    path = Path(path)
    text = json.dumps(content, indent=2, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text + "\n")
    os.replace(aside, path)
