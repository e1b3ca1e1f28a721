"""From a decoded gradient to changed weights."""

from .adapter import add_to_pair_
from .retained_inputs import InputSketch, RetainedInputs, all_results, share, watch_inputs
from .second_moments import SecondMoments
from .weights import add_low_rank_, add_low_rank_all_, align_, stochastic_round


__all__ = [
    "InputSketch",
    "RetainedInputs",
    "SecondMoments",
    "add_low_rank_",
    "add_low_rank_all_",
    "add_to_pair_",
    "align_",
    "all_results",
    "share",
    "stochastic_round",
    "watch_inputs",
]
