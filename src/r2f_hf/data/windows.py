"""Documents longer than a model reads, cut into windows."""

from __future__ import annotations

from .formatting import IGNORE_INDEX, Encoded


def cut_into_windows(example: Encoded, size: int, overlap: int) -> list[Encoded]:
    """
    Cut an encoded text into windows. Each token carries a label in one of them only: where windows overlap, the tokens
    give the later window its beginning, and nothing is learned of them twice.

    Args:
        example (`dict[str, list[int]]`):
            `input_ids` and `labels` of a text. Tokens without a label in front of it begin every window.
        size (`int`):
            The longest window, in tokens.
        overlap (`int`):
            Tokens that a window shares with the one before.

    Returns:
        `list[dict[str, list[int]]]`: The windows; the example itself if it fits.

    Raises:
        `ValueError`: If the overlap leaves no room for new tokens.
    """
    ids, labels = example["input_ids"], example["labels"]
    if len(ids) <= size:
        return [example]
    opening = next(index for index, label in enumerate(labels) if label != IGNORE_INDEX)
    room = size - opening
    if not 0 <= overlap < room:
        raise ValueError(
            f"`window_overlap` must be from 0 to {room - 1}, so that windows of {size} tokens hold new ones, got "
            f"{overlap}."
        )
    windows = []
    # The first token of a text has nothing before it that could predict it: no window is to begin with a new one.
    shared = max(overlap, 1 - opening)
    start, known = opening, opening
    while known < len(ids):
        stop = min(start + room, len(ids))
        windows.append(
            {
                "input_ids": ids[:opening] + ids[start:stop],
                "labels": [IGNORE_INDEX] * (opening + known - start) + labels[known:stop],
            }
        )
        start, known = stop - shared, stop
    return windows
