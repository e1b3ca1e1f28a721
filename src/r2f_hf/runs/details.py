"""What a report needs to know about a run in addition to its ledger: rows, modules, cost and the command."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .files import write_text


# It names files of the user's. Trainer does not push names that begin with an underscore.
DETAILS_FILE = "_r2f_details.json"
# It rises when a field goes or means something else, and stays when one is added.
SCHEMA = "r2f-details/1"

# By when (`before`, `after`) and set, the number of each row. `None` stands for what is not finite.
Rows = dict[str, dict[str, list[float | None]]]


@dataclass
class Details:
    """
    What is written next to a run's result, in `_r2f_details.json`. It has no text of the rows.

    Args:
        command (`str`, *optional*):
            The command line, if the run was started from one.
        model (`str`, *optional*):
            Name or folder of the model that the run began with.
        data (`dict[str, str]`):
            By set the file or the dataset that its rows come from, as far as it is known.
        set_sizes (`dict[str, int]`):
            The number of rows of each set.
        rows (`dict[str, dict[str, list[float]]]`):
            The probability of each row's answer, `before` and `after`, by set.
        modules (`list[str]`):
            The names of the modules that were updated.
        fidelity (`list[list[float]]`):
            By step the estimated cosine of each module's gradient to the full one. Empty if no rows are held out.
        cost (`dict[str, Any]`):
            See [`~r2f_hf.runs.cost.measured_cost`]. If the run was resumed, that of its last part.
        resumed (`bool`):
            Whether the run was resumed from a checkpoint.
    """

    command: str | None = None
    model: str | None = None
    data: dict[str, str] = field(default_factory=dict)
    set_sizes: dict[str, int] = field(default_factory=dict)
    rows: Rows = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)
    fidelity: list[list[float]] = field(default_factory=list)
    cost: dict[str, Any] = field(default_factory=dict)
    resumed: bool = False

    def write(self, folder: str | os.PathLike) -> None:
        """Write them into a folder. A step is a line, so that the file stays short."""
        content = finite({"schema": SCHEMA, **asdict(self)})
        write_text(Path(folder) / DETAILS_FILE, json.dumps(content, allow_nan=False) + "\n")

    @classmethod
    def read(cls, folder: str | os.PathLike) -> Details:
        """Read them from a folder. They are empty if it has none."""
        file = Path(folder) / DETAILS_FILE
        if not file.is_file():
            return cls()
        content: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return cls(**{name: value for name, value in content.items() if name in cls.__dataclass_fields__})


def finite(content: Any) -> Any:
    """The same with `None` in place of each number that is NaN or infinite, which JSON does not have."""
    if isinstance(content, dict):
        return {name: finite(value) for name, value in content.items()}
    if isinstance(content, list):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
