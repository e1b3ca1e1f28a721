"""A gradient as a sketch and in factors, and how faithful one is to the other."""

from .fidelity import Fidelity, check_min_fidelity, estimate_fidelity
from .linalg import eigh, on_all, on_cpu, svd
from .low_rank import LowRankGradient
from .seeds import named_generator, named_seed
from .sketch import LoraSketch


__all__ = [
    "Fidelity",
    "LoraSketch",
    "LowRankGradient",
    "check_min_fidelity",
    "eigh",
    "estimate_fidelity",
    "named_generator",
    "named_seed",
    "on_all",
    "on_cpu",
    "svd",
]
