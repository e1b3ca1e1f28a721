"""How well a score tells the rows that a model was trained on from rows that it never saw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import mannwhitneyu

from .checks import check_numbers


def attack(forget: Sequence[float], holdout: Sequence[float]) -> dict[str, Any]:
    """
    Judge a membership attack by its scores, which are the higher the less a row looks like one that was seen.

    Args:
        forget (`Sequence[float]`):
            A score per row of the forget set.
        holdout (`Sequence[float]`):
            A score per row that the model never saw.

    Returns:
        `dict`: `auc`, the probability that a holdout row scores higher than a forget row, with ties as half;
        `p_value`, of the two-sided Mann-Whitney test against 0.5; and the scores, `forget` and `holdout`.

    Raises:
        `ValueError`: If a score is NaN, or if a set has fewer than two rows.
    """
    members = check_numbers(forget, "predictions", infinite=True, least=2)
    others = check_numbers(holdout, "holdout", infinite=True, least=2)
    test = mannwhitneyu(others, members)
    return {
        "auc": float(test.statistic / (len(members) * len(others))),
        "p_value": float(test.pvalue),
        "forget": members.tolist(),
        "holdout": others.tolist(),
    }


def lowest(values: Sequence[np.ndarray], k: float, definition: str) -> list[float]:
    """
    Average the lowest values of each row, and turn the sign round.

    Args:
        values (`Sequence[np.ndarray]`):
            A value per token, for each row.
        k (`float`):
            Share of the tokens.
        definition (`str`):
            `"open-unlearning"` leaves the last token of each row out. `"paper"` takes all.

    Returns:
        `list[float]`: A score per row, at least one token being taken of each.

    Raises:
        `ValueError`: If `k` is not a share, or if a row has no token left.
    """
    if not 0 < k <= 1:
        raise ValueError(f"`k` is a share of the tokens, above 0 and up to 1, not {k}.")
    scores = []
    for index, row in enumerate(values):
        kept = np.sort(row[:-1] if definition == "open-unlearning" else row)
        if len(kept) == 0:
            raise ValueError(f'Row {index} has one token, and `definition="open-unlearning"` leaves out the last one.')
        scores.append(-float(kept[: max(1, int(k * len(kept)))].mean()))
    return scores
