"""Model utility, as an `evaluate` metric."""

import datasets
import evaluate
from scipy.stats import hmean


_DESCRIPTION = """
What is left of a model's abilities (TOFU, arXiv 2401.06121, section 2.2.1): the harmonic mean of probability, ROUGE-L
recall and truth ratio (as kept sets are aggregated) over the retain, real-authors and world-facts rows, nine numbers.
Any of them at zero makes it zero.
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
        if not all(0 <= value <= 1 for value in predictions):
            raise ValueError(f"Model utility is a mean of numbers in [0, 1], got {predictions}.")
        return {"model_utility": float(hmean(predictions))}
