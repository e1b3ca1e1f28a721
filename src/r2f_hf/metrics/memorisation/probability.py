"""Length-normalised probability of an answer, as an `evaluate` metric."""

import datasets
import evaluate
import numpy as np


_DESCRIPTION = """
How probable the answers are under a model, whatever their length: the length-normalised probability P(a|q)^(1/|a|) of
the TOFU benchmark, as a mean over rows. If wrong answers are given, each row is normalised by them:
P(a|q) / (P(a|q) + sum_i P(wrong_i|q)), where each probability is length-normalised. TOFU does so for its real-authors
and world-facts rows.
"""

_CITATION = """
@article{maini2024tofu, title={{TOFU}: A Task of Fictitious Unlearning for {LLMs}}, author={Maini, Pratyush and Feng,
Zhili and Schwarzschild, Avi and Lipton, Zachary C. and Kolter, J. Zico}, journal={arXiv:2401.06121}, year={2024}}
"""

_INPUTS = """
Args:
    predictions (`list[float]`): mean log-probability per token (natural logarithm) of each row's answer.
    wrong (`list[list[float]]`, *optional*): mean log-probability per token of each row's wrong answers.
Returns:
    `dict`: `probability` (`float`), the mean, and `rows` (`list[float]`), the probability of each row.
"""


class Probability(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("float64")}),
        )

    def _compute(self, predictions, wrong=None):
        log_probs = np.asarray(predictions)
        if (log_probs > 0).any():
            raise ValueError("`predictions` cannot be positive: give log-probabilities, not probabilities.")
        rows = np.exp(log_probs)
        if wrong is not None:
            if len(wrong) != len(rows):
                raise ValueError(
                    f"{len(rows)} predictions but {len(wrong)} rows of wrong answers: `wrong` needs a list per row."
                )
            rows = np.array([right / (right + np.exp(row).sum()) for right, row in zip(rows, wrong, strict=True)])
        return {"probability": float(rows.mean()), "rows": rows.tolist()}
