"""Sketches of gradients, factored gradients, their error and their way into a weight."""

from .fidelity import Fidelity, estimate_fidelity
from .low_rank import LowRankGradient
from .probes import LoraProbe, find_probes
from .sketch import LoraSketch, draw_probes, named_generator
from .update import add_low_rank_, stochastic_round


__all__ = [
    "Fidelity",
    "LoraProbe",
    "LoraSketch",
    "LowRankGradient",
    "add_low_rank_",
    "draw_probes",
    "estimate_fidelity",
    "find_probes",
    "named_generator",
    "stochastic_round",
]
