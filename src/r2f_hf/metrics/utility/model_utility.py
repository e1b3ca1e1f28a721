"""Model utility, as an `evaluate` metric."""

import datasets
import evaluate
from scipy.stats import hmean

from r2f_hf.metrics.checks import check_numbers


_DESCRIPTION = """
How much of its abilities a model has kept (TOFU, arXiv 2401.06121, section 2.2.1): the harmonic mean of nine numbers.
They are the probability, the ROUGE-L recall and the truth ratio (aggregated as for sets to be kept) on the retain, the
real-authors and the world-facts rows. If one of them is zero, the utility is zero.
"""

_CITATION = """
@article{maini2024tofu, title={{TOFU}: A Task of Fictitious Unlearning for {LLMs}}, author={Maini, Pratyush and Feng,
Zhili and Schwarzschild, Avi and Lipton, Zachary C. and Kolter, J. Zico}, journal={arXiv:2401.06121}, year={2024}}
"""

_INPUTS = """
Args:
    predictions (`list[float]`): the numbers, each in [0, 1].
Returns:
    `dict`: `model_utility` (`float`).
"""


class ModelUtility(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("float64")}),
        )

    def _compute(self, predictions):
        return {"model_utility": float(hmean(check_numbers(predictions, "predictions", 0, 1)))}
