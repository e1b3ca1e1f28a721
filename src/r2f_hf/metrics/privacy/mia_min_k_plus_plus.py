"""Membership attack by the least likely tokens, standardised, as an `evaluate` metric."""

import datasets
import evaluate
import numpy as np

from r2f_hf.metrics.checks import check_definition, check_lists, check_rows
from r2f_hf.metrics.membership import attack, lowest


# A distribution that is all on one token has no deviation, and nothing can be divided by that.
SMALLEST_DEVIATION = 1e-3

_DESCRIPTION = """
Whether the least likely tokens, compared with what else could stand there, tell forgotten rows from unseen ones
(Min-K%++, Zhang et al., arXiv 2404.02936). Each token has the value (log p - m) / s. Here m and s are the mean and the
standard deviation of log p(v) over the vocabulary, under p. The score is minus the mean of the k n lowest values, of
at least one. s is at least 0.001, as in open-unlearning.

A row scores the higher the less it looks like one that was seen. `auc` is the probability that a row of the holdout
set scores higher than one of the forget set. It is 0.5 if the score cannot tell, and 1 if every forget row was plainly
seen. Below 0.5 the forget rows look *less* familiar than rows that the model never saw, which gives the request away
too. `p_value` is that of a Mann-Whitney test against 0.5.

open-unlearning leaves the last token out, as if it always closed the text (`definition="open-unlearning"`). RWKU's
code reports this score under the name of Min-K%.
"""

_CITATION = """
@article{zhang2024min, title={{Min-K%++}: Improved Baseline for Detecting Pre-Training Data from Large Language
Models}, author={Zhang, Jingyang and Sun, Jingwei and Yeats, Eric and Ouyang, Yang and Kuo, Martin and Zhang, Jianyi
and Yang, Hao Frank and Li, Hai}, journal={arXiv:2404.02936}, year={2024}}
"""

_INPUTS = """
Args:
    predictions (`list[list[float]]`): log-probability of each token, for each row of the forget set.
    means (`list[list[float]]`): m at each of these tokens.
    deviations (`list[list[float]]`): s at each of these tokens.
    holdout (`list[list[float]]`): log-probability of each token of rows that the model never saw.
    holdout_means (`list[list[float]]`): m at each of these tokens.
    holdout_deviations (`list[list[float]]`): s at each of these tokens.
    k (`float`, *optional*, defaults to `0.4`): share of the tokens.
    definition (`str`, *optional*, defaults to `"paper"`): `"paper"` or `"open-unlearning"`.
Returns:
    `dict`: `auc` and `p_value` (`float`), and `forget` and `holdout` (`list[float]`), the score of each row.
"""


class MiaMinKPlusPlus(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("float64"))}),
        )

    def _compute(
        self,
        predictions,
        means,
        deviations,
        holdout,
        holdout_means,
        holdout_deviations,
        k=0.4,
        definition="paper",
    ):
        check_definition(definition, "paper", "open-unlearning")
        forget = standardised(predictions, means, deviations, "predictions")
        others = standardised(holdout, holdout_means, holdout_deviations, "holdout")
        return attack(lowest(forget, k, definition), lowest(others, k, definition))


def standardised(log_probs, means, deviations, name):
    check_rows(**{name: log_probs, "means": means, "deviations": deviations})
    rows = check_lists(log_probs, name, "token", infinite=True)
    centres, widths = check_lists(means, "means", "token"), check_lists(deviations, "deviations", "token")
    for index, lengths in enumerate(zip(map(len, rows), map(len, centres), map(len, widths), strict=True)):
        if len(set(lengths)) > 1:
            raise ValueError(
                f"Row {index} of `{name}` has {lengths[0]} tokens, {lengths[1]} means and {lengths[2]} "
                "deviations. Give one of each per token."
            )
    return [
        (row - centre) / np.maximum(width, SMALLEST_DEVIATION)
        for row, centre, width in zip(rows, centres, widths, strict=True)
    ]
