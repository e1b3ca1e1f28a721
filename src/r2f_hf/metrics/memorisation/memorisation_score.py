"""Memorisation score, as an `evaluate` metric."""

import datasets
import evaluate
from scipy.stats import hmean

from r2f_hf.metrics.checks import check_numbers


_DESCRIPTION = """
How much is forgotten, as one number (arXiv 2605.24614): the harmonic mean of 1 - m over four numbers m. They are the
extraction strength, the exact memorisation, the probability of a paraphrased answer, and the share of the probability
that the truth has (`prob_mean` of the truth ratio). If one of them is 1, the score is 0. The authors' code gives no
number then.
"""

_CITATION = """
@article{lee2026measuring, title={Measuring the Depth of {LLM} Unlearning via Activation Patching}, author={Lee, Jaeung
and Kim, Dohyun and Jo, Jaemin}, journal={arXiv:2605.24614}, year={2026}}
"""

_INPUTS = """
Args:
    predictions (`list[float]`): the numbers, each in [0, 1].
Returns:
    `dict`: `memorisation_score` (`float`), from 0 to 1, where 1 is best.
"""


class MemorisationScore(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("float64")}),
        )

    def _compute(self, predictions):
        return {"memorisation_score": float(hmean(1 - check_numbers(predictions, "predictions", 0, 1)))}
