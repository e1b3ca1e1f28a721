"""Unlearning success rate and general utility retention, as an `evaluate` metric."""

import datasets
import evaluate

from r2f_hf.metrics.checks import check_numbers, check_rows


_DESCRIPTION = """
How much of what was to be forgotten is gone, and how much of the rest is kept, in percent. The names are those of
arXiv 2512.07374, and the formulas are this package's own. USR is 100 (1 - r), where r is the mean ROUGE-L recall of
RWKU's three forget levels. GUR is 100 times after / before, as a mean over measures of utility.
"""

_CITATION = """
@article{liu2025recover, title={Recover-to-Forget: Gradient Reconstruction from {LoRA} for Efficient {LLM} Unlearning},
author={Liu, Yezi and Chen, Hanning and Huang, Wenjun and Ni, Yang and Imani, Mohsen}, journal={arXiv:2512.07374},
year={2025}}
"""

_INPUTS = """
Args:
    predictions (`list[float]`): the recall of each forget level, each in [0, 1].
    utility (`list[float]`): the measures of utility after unlearning, such as the recall on neighbours, and
    accuracies.
    utility_before (`list[float]`): the same before unlearning.
Returns:
    `dict`: `usr` and `gur` (`float`), and `rows` (`list[float]`), 100 times after / before of each measure.
"""


class UsrGur(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("float64")}),
        )

    def _compute(self, predictions, utility, utility_before):
        check_rows(utility=utility, utility_before=utility_before)
        recall = check_numbers(predictions, "predictions", 0, 1)
        after = check_numbers(utility, "utility", low=0)
        before = check_numbers(utility_before, "utility_before", low=0)
        if (before == 0).any():
            raise ValueError(
                f"Row {(before == 0).argmax()} of `utility_before` is 0, and is divided by. Leave it out."
            )
        rows = 100 * after / before
        return {"usr": float(100 * (1 - recall.mean())), "gur": float(rows.mean()), "rows": rows.tolist()}
