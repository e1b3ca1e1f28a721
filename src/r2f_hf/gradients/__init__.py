"""Gradients as sketches and as products of factors, and estimates of how faithful the factors are."""

from .fidelity import Fidelity, check_min_fidelity, estimate_fidelity
from .linalg import double_gram, eigh, on_all, on_cpu, svd, together_on_cpu
from .low_rank import LowRankGradient
from .seeds import named_generator, named_seed
from .sketch import LoraSketch
from .spectrum import damp_spectra


__all__ = [
    "Fidelity",
    "LoraSketch",
    "LowRankGradient",
    "check_min_fidelity",
    "damp_spectra",
    "double_gram",
    "eigh",
    "estimate_fidelity",
    "named_generator",
    "named_seed",
    "on_all",
    "on_cpu",
    "svd",
    "together_on_cpu",
]
