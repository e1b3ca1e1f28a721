"""Results that are kept in a file, and read again if nothing that they depend on has changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from ..runs.files import read_kept, write_json
from ..scoring import seconds_by_part


def kept(file: Path | None, key: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """
    Read results from a file, or compute them and write them there. On several processes, all of them have to call it.

    Args:
        file (`Path`, *optional*):
            The file. Without one nothing is read or written.
        key (`str`):
            A hash of all that the results depend on.
        compute (`Callable[[], dict]`):
            Computes the results, which JSON can hold.

    Returns:
        `dict`: The results, the `key`, and the `seconds` that each part took when it was computed.
    """
    known = read_kept(file)
    if PartialState().num_processes > 1:
        # Processes on another machine may not see the file, and all have to compute or none.
        (known,) = broadcast_object_list([known])
    if known.get("key") == key:
        return known
    with seconds_by_part() as seconds:
        computed = compute()
    known = {"key": key, **computed, "seconds": seconds}
    if file is not None and PartialState().is_main_process:
        write_json(file, known)
    return known
