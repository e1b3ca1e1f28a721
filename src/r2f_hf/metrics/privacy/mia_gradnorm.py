"""Membership attack by the gradient, as an `evaluate` metric."""

import datasets
import evaluate
import numpy as np

from r2f_hf.metrics.checks import check_definition, check_lists
from r2f_hf.metrics.membership import attack


_DESCRIPTION = """
Whether the size of the gradient tells forgotten rows from rows that the model never saw (Wang et al., arXiv
2402.17012). The score is the 2-norm of the gradient of a row's mean loss over all parameters.

A row scores the higher the less it looks like one that was seen. `auc` is the probability that a row of the holdout
set scores higher than one of the forget set. It is 0.5 if the score cannot tell, and 1 if every forget row was plainly
seen. Below 0.5 the forget rows look *less* familiar than rows that the model never saw, which gives the request away
too. `p_value` is that of a Mann-Whitney test against 0.5.

open-unlearning averages the norms of the parameters' gradients, so that a bias counts as much as a matrix:
`definition="open-unlearning"`. It also leaves the last token out of the loss. Here the caller leaves it out.
"""

_CITATION = """
@article{wang2024pandora, title={Pandora's White-Box: Precise Training Data Detection and Extraction in Large Language
Models}, author={Wang, Jeffrey G. and Wang, Jason and Li, Marvin and Neel, Seth}, journal={arXiv:2402.17012},
year={2024}}
"""

_INPUTS = """
Args:
    predictions (`list[list[float]]`): norm of each parameter's gradient, for each row of the forget set.
        [`gradient_norms`] computes them.
    holdout (`list[list[float]]`): the same of rows that the model never saw.
    definition (`str`, *optional*, defaults to `"paper"`): `"paper"` or `"open-unlearning"`.
Returns:
    `dict`: `auc` and `p_value` (`float`), and `forget` and `holdout` (`list[float]`), the score of each row.
"""


class MiaGradnorm(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("float64"))}),
        )

    def _compute(self, predictions, holdout, definition="paper"):
        check_definition(definition, "paper", "open-unlearning")
        size = np.mean if definition == "open-unlearning" else np.linalg.norm
        forget = [size(row) for row in check_lists(predictions, "predictions", "parameter")]
        return attack(forget, [size(row) for row in check_lists(holdout, "holdout", "parameter")])
