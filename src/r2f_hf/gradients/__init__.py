"""Sketches of gradients, factored gradients, their error and their way into a weight."""

from .decompositions import eigh, on_all, on_cpu, svd
from .delta import add_to_pair_
from .fidelity import Fidelity, check_min_fidelity, estimate_fidelity
from .groups import ProbeGroup, follow_all, group_probes
from .low_rank import LowRankGradient
from .probes import LoraProbe, find_probes
from .retained_inputs import InputSketch, RetainedInputs, all_results, share, watch_inputs
from .second_moments import SecondMoments
from .sharding import copy_, gather, is_partitioned, is_row_sharded, is_sharded, own_blocks, whole_shape
from .sketch import LoraSketch, draw_probes, named_generator
from .subspace import GradientSubspace
from .update import add_low_rank_, add_low_rank_all_, align_, stochastic_round


__all__ = [
    "Fidelity",
    "GradientSubspace",
    "InputSketch",
    "LoraProbe",
    "LoraSketch",
    "LowRankGradient",
    "ProbeGroup",
    "RetainedInputs",
    "SecondMoments",
    "add_low_rank_",
    "add_low_rank_all_",
    "add_to_pair_",
    "align_",
    "all_results",
    "check_min_fidelity",
    "copy_",
    "draw_probes",
    "eigh",
    "estimate_fidelity",
    "find_probes",
    "follow_all",
    "gather",
    "group_probes",
    "is_partitioned",
    "is_row_sharded",
    "is_sharded",
    "named_generator",
    "on_all",
    "on_cpu",
    "own_blocks",
    "share",
    "stochastic_round",
    "svd",
    "watch_inputs",
    "whole_shape",
]
