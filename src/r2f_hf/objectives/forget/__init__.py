"""Forget objectives: what is minimised on the forget set."""

from .ascent import GradientAscent, GradientDifference, SatImp, WeightedGradientAscent
from .bootstrapping import BootstrappedSequences, BootstrappedTokens
from .distillation import CEU, DUET, SHRED, UNDIAL
from .ignorance import Ignorance
from .margin import InvertedHinge, MarginCalibration
from .preference import DPO, NPO, TNPO, AltPO, SimNPO
from .primal_dual import PDU
from .representation import RMU, AdaptiveRMU
from .substitution import FLAT, IDK, JensUn


__all__ = [
    "CEU",
    "DPO",
    "DUET",
    "FLAT",
    "IDK",
    "NPO",
    "PDU",
    "RMU",
    "SHRED",
    "TNPO",
    "UNDIAL",
    "AdaptiveRMU",
    "AltPO",
    "BootstrappedSequences",
    "BootstrappedTokens",
    "GradientAscent",
    "GradientDifference",
    "Ignorance",
    "InvertedHinge",
    "JensUn",
    "MarginCalibration",
    "SatImp",
    "SimNPO",
    "WeightedGradientAscent",
]
