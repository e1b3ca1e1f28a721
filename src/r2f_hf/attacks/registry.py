"""Attacks by name."""

from __future__ import annotations

from collections.abc import Sequence

from ..lookup import lookup
from .base import Attack
from .format_shift import FORMAT_SHIFT
from .logit_lens import LOGIT_LENS
from .merging import MERGING
from .pruning import PRUNING
from .quantisation import QUANTISATION
from .relearning import RELEARNING
from .reversed_guidance import REVERSED_GUIDANCE
from .sampling import SAMPLING


ATTACKS: dict[str, Attack] = {
    "relearning": RELEARNING,
    "quantisation": QUANTISATION,
    "pruning": PRUNING,
    "sampling": SAMPLING,
    "format_shift": FORMAT_SHIFT,
    "reversed_guidance": REVERSED_GUIDANCE,
    "merging": MERGING,
    "logit_lens": LOGIT_LENS,
}


def split_names(names: Sequence[str]) -> list[str]:
    """Names one by one. Each of those given may hold several, separated by commas."""
    return [name.strip() for each in names for name in each.split(",") if name.strip()]


def chosen_attacks(names: Sequence[str]) -> list[str]:
    """
    The attacks that a user names, in their order here.

    Args:
        names (`Sequence[str]`):
            Names from [`ATTACKS`], or `"all"`. A name may hold several, separated by commas.

    Raises:
        `ValueError`: For a name that there is not, with the nearest one; or if there are none.
    """
    split = split_names(names)
    if not split:
        raise ValueError(f"No attack is named. Choose from all, {', '.join(ATTACKS)}.")
    for name in split:
        if name != "all":
            lookup(ATTACKS, name, "attack")
    return [name for name in ATTACKS if name in split or "all" in split]
