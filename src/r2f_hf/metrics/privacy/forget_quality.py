"""Forget quality, as an `evaluate` metric."""

import datasets
import evaluate
import numpy as np
from scipy.stats import ks_2samp


_DESCRIPTION = """
Whether an unlearned model can be told from a model that never saw the forget set (TOFU, arXiv 2401.06121, section
2.2.2). It is the p-value of a two-sample Kolmogorov-Smirnov test between the two models' truth ratios on the forget
set. Below 0.05 the models can be told apart. TOFU reports the logarithm of the p-value.

`smallest` is the p-value of two sets of ratios that do not overlap at all. If it is above 0.05, there are too few rows
for the test to say anything. One row alone is refused: its p-value can never be small.
"""

_CITATION = """
@article{maini2024tofu, title={{TOFU}: A Task of Fictitious Unlearning for {LLMs}}, author={Maini, Pratyush and Feng,
Zhili and Schwarzschild, Avi and Lipton, Zachary C. and Kolter, J. Zico}, journal={arXiv:2401.06121}, year={2024}}
"""

_INPUTS = """
Args:
    predictions (`list[float]`): truth ratios of the unlearned model, one per row of the forget set.
    gold (`list[float]`): truth ratios of a model that was trained without the forget set.
Returns:
    `dict`: `forget_quality` (`float`), the p-value; `statistic` (`float`), the statistic of the test; and `smallest`
        (`float`), the smallest p-value that so many rows can give.
"""


class ForgetQuality(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("float64")}),
        )

    def _compute(self, predictions, gold):
        if len(gold) == 0:
            raise ValueError(
                "`gold` is empty. Give it the truth ratios of a model that never saw the forget set: forget quality "
                "compares with them."
            )
        for name, ratios in (("predictions", predictions), ("gold", gold)):
            for index, ratio in enumerate(ratios):
                if ratio is None or np.isnan(ratio):
                    raise ValueError(
                        f"Row {index} of `{name}` is NaN: the model that it is of gives no probabilities."
                    )
            if len(ratios) < 2:
                raise ValueError(f"`{name}` has one row: a test on it says nothing. Give it the rows of a forget set.")
        test = ks_2samp(predictions, gold)
        smallest = ks_2samp(np.zeros(len(predictions)), np.ones(len(gold))).pvalue
        return {
            "forget_quality": float(test.pvalue),
            "statistic": float(test.statistic),
            "smallest": float(smallest),
        }
