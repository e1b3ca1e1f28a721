"""Privacy score, as an `evaluate` metric."""

import datasets
import evaluate
import numpy as np
from scipy.stats import hmean

from r2f_hf.metrics.checks import check_numbers, check_rows


_DESCRIPTION = """
How well it is hidden that the model once saw the rows, as one number (arXiv 2605.24614). For each membership attack

    s = max(0, 1 - |auc - auc_gold| / auc_gold)

says how near the unlearned model is to gold. The score is the harmonic mean of these, and, if the unlearning depth is
given, the harmonic mean of that mean and the depth. If one of them is 0, so is the score.
"""

_CITATION = """
@article{lee2026measuring, title={Measuring the Depth of {LLM} Unlearning via Activation Patching}, author={Lee, Jaeung
and Kim, Dohyun and Jo, Jaemin}, journal={arXiv:2605.24614}, year={2026}}
"""

_INPUTS = """
Args:
    predictions (`list[float]`): `auc` of each attack on the unlearned model.
    gold (`list[float]`): `auc` of the same attacks on gold.
    depth (`float`, *optional*): the unlearning depth.
Returns:
    `dict`: `privacy_score` (`float`), from 0 to 1, where 1 is best; and `rows` (`list[float]`), the s of each attack.
"""


class PrivacyScore(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("float64")}),
        )

    def _compute(self, predictions, gold, depth=None):
        check_rows(predictions=predictions, gold=gold)
        areas, references = check_numbers(predictions, "predictions", 0, 1), check_numbers(gold, "gold", 0, 1)
        if (references == 0).any():
            raise ValueError(f"Row {(references == 0).argmax()} of `gold` is 0, and is divided by.")
        rows = np.clip(1 - np.abs(areas - references) / references, 0, 1)
        score = float(hmean(rows))
        if depth is not None:
            score = float(hmean([score, *check_numbers([depth], "depth", 0, 1)]))
        return {"privacy_score": score, "rows": rows.tolist()}
