"""Length-normalised probability of an answer, as an `evaluate` metric."""

import datasets
import evaluate
import numpy as np
from scipy.special import logsumexp

from r2f_hf.metrics.checks import check_definition, check_lists, check_numbers


# What open-unlearning adds to a denominator.
EPSILON = 1e-10

_DESCRIPTION = """
How probable the answers are under a model, whatever their length: the length-normalised probability P(a|q)^(1/|a|) of
the TOFU benchmark, as a mean over rows. If wrong answers are given, each row is normalised by them:
P(a|q) / (P(a|q) + sum_i P(wrong_i|q)), where each probability is length-normalised. TOFU does so for its real-authors
and world-facts rows.

open-unlearning adds 1e-10 to that denominator, which is not small beside the probabilities of a ruined model.
`definition="open-unlearning"` gives its numbers.
"""

_CITATION = """
@article{maini2024tofu, title={{TOFU}: A Task of Fictitious Unlearning for {LLMs}}, author={Maini, Pratyush and Feng,
Zhili and Schwarzschild, Avi and Lipton, Zachary C. and Kolter, J. Zico}, journal={arXiv:2401.06121}, year={2024}}
"""

_INPUTS = """
Args:
    predictions (`list[float]`): mean log-probability per token (natural logarithm) of each row's answer.
    wrong (`list[list[float]]`, *optional*): mean log-probability per token of each row's wrong answers.
    definition (`str`, *optional*, defaults to `"paper"`): `"paper"` or `"open-unlearning"`.
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

    def _compute(self, predictions, wrong=None, definition="paper"):
        check_definition(definition, "paper", "open-unlearning")
        if any(log_prob is not None and log_prob > 0 for log_prob in predictions):
            raise ValueError("`predictions` cannot be positive: give log-probabilities, not probabilities.")
        log_probs = check_numbers(predictions, "predictions", infinite=True)
        if wrong is not None:
            if len(wrong) != len(log_probs):
                raise ValueError(
                    f"{len(log_probs)} predictions but {len(wrong)} rows of wrong answers: `wrong` needs a list per "
                    "row."
                )
            epsilon = [np.log(EPSILON)] if definition == "open-unlearning" else []
            lists = check_lists(wrong, "wrong", "wrong answer", infinite=True)
            totals = np.array(
                [logsumexp([right, *row, *epsilon]) for right, row in zip(log_probs, lists, strict=True)]
            )
            if np.isinf(totals).any():
                raise ValueError(f"Row {np.isinf(totals).argmax()}: all of its answers have the probability 0.")
            log_probs = log_probs - totals
        rows = np.exp(log_probs)
        return {"probability": float(rows.mean()), "rows": rows.tolist()}
