"""Membership attack by loss, as an `evaluate` metric."""

import datasets
import evaluate

from r2f_hf.metrics.membership import attack


_DESCRIPTION = """
Whether the loss tells forgotten rows from rows that the model never saw (Yeom et al., arXiv 1709.01604). The score is
the mean loss per token.

A row scores the higher the less it looks like one that was seen. `auc` is the probability that a row of the holdout
set scores higher than one of the forget set. It is 0.5 if the score cannot tell, and 1 if every forget row was plainly
seen. Below 0.5 the forget rows look *less* familiar than rows that the model never saw, which gives the request away
too. `p_value` is that of a Mann-Whitney test against 0.5.
"""

_CITATION = """
@article{yeom2018privacy, title={Privacy Risk in Machine Learning: Analyzing the Connection to Overfitting},
author={Yeom, Samuel and Giacomelli, Irene and Fredrikson, Matt and Jha, Somesh}, journal={arXiv:1709.01604},
year={2017}}
"""

_INPUTS = """
Args:
    predictions (`list[float]`): mean loss per token of each row of the forget set, or minus the log-probability.
    holdout (`list[float]`): the same of rows that the model never saw.
Returns:
    `dict`: `auc` and `p_value` (`float`), and `forget` and `holdout` (`list[float]`), the score of each row.
"""


class MiaLoss(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("float64")}),
        )

    def _compute(self, predictions, holdout):
        return attack(predictions, holdout)
