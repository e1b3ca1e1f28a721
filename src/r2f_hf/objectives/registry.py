"""Objectives by name. An objective of one's own is one more entry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from ..lookup import lookup
from .base import ForgetObjective, RetainObjective
from .forget import (
    CEU,
    DPO,
    DUET,
    FLAT,
    IDK,
    NPO,
    PDU,
    RMU,
    SHRED,
    TNPO,
    UNDIAL,
    AdaptiveRMU,
    AltPO,
    BootstrappedSequences,
    BootstrappedTokens,
    GradientAscent,
    GradientDifference,
    Ignorance,
    InvertedHinge,
    JensUn,
    MarginCalibration,
    SatImp,
    SimNPO,
    WeightedGradientAscent,
)
from .retain import KL, NLL, HiddenStates, JensenShannon


FORGET_OBJECTIVES: dict[str, type[ForgetObjective]] = {
    "ga": GradientAscent,
    "grad_diff": GradientDifference,
    "wga": WeightedGradientAscent,
    "satimp": SatImp,
    "npo": NPO,
    "simnpo": SimNPO,
    "tnpo": TNPO,
    "dpo": DPO,
    "altpo": AltPO,
    "idk": IDK,
    "flat": FLAT,
    "jensun": JensUn,
    "undial": UNDIAL,
    "ce_u": CEU,
    "shred": SHRED,
    "duet": DUET,
    "inverted_hinge": InvertedHinge,
    "margin": MarginCalibration,
    "bs_t": BootstrappedTokens,
    "bs_s": BootstrappedSequences,
    "rmu": RMU,
    "adaptive_rmu": AdaptiveRMU,
    "pdu": PDU,
    "ignorance": Ignorance,
}

RETAIN_OBJECTIVES: dict[str, type[RetainObjective]] = {
    "nll": NLL,
    "kl": KL,
    "jensen_shannon": JensenShannon,
    "hidden_states": HiddenStates,
}

Objective = TypeVar("Objective", ForgetObjective, RetainObjective)


def build_objective(
    table: Mapping[str, type[Objective]], name: str, kwargs: Mapping[str, Any], kind: str
) -> Objective:
    """
    An objective by name, with its options.

    Args:
        table (`Mapping[str, type]`):
            [`FORGET_OBJECTIVES`] or [`RETAIN_OBJECTIVES`].
        name (`str`):
            The name.
        kwargs (`Mapping[str, Any]`):
            Its options.
        kind (`str`):
            What it is, for the message: `"forget objective"` or `"retain objective"`.

    Raises:
        `ValueError`: For an unknown name or option, with the nearest one, or a value that is not allowed.
    """
    objective = lookup(table, name, kind)
    options = {option.name: None for option in fields(objective) if option.init}
    for key in kwargs:
        if not options:
            raise ValueError(f"The {kind} {name!r} has no options, got {key!r}.")
        lookup(options, key, f"option of the {kind} {name!r}")
    return objective(**kwargs)
