"""Truth ratio, as an `evaluate` metric."""

import datasets
import evaluate
import numpy as np


_DESCRIPTION = """
Whether a model still prefers the truth when it is worded otherwise (TOFU, arXiv 2401.06121, equation 1):

    R = mean_i P(wrong_i|q)^(1/|wrong_i|) / P(paraphrase|q)^(1/|paraphrase|)

where the paraphrase is a rewording of the true answer and the wrong answers share its form. R is near 1 or above for a
model that does not know the answer, and near 0 for one that does. Rows are aggregated, as in TOFU, to
mean(min(R, 1/R)) for a forget set (1 is best) and to mean(max(0, 1 - R)) for sets to be kept (1 is best).

The paper averages the wrong answers' probabilities. TOFU's released aggregation script and open-unlearning's forget
quality average their losses instead (a geometric mean); `mean="geometric"` gives their numbers.
"""

_CITATION = """
@article{maini2024tofu, title={{TOFU}: A Task of Fictitious Unlearning for {LLMs}}, author={Maini, Pratyush and Feng,
Zhili and Schwarzschild, Avi and Lipton, Zachary C. and Kolter, J. Zico}, journal={arXiv:2401.06121}, year={2024}}
"""

_INPUTS = """
Args:
    predictions (`list[float]`): mean log-probability per token of each row's paraphrased true answer.
    wrong (`list[list[float]]`): the same of each row's wrong answers.
    mean (`str`, *optional*, defaults to `"arithmetic"`): `"arithmetic"` or `"geometric"`.
Returns:
    `dict`: `forget` and `keep` (`float`), the two aggregates, and `rows` (`list[float]`), each row's R.
"""


class TruthRatio(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("float64")}),
        )

    def _compute(self, predictions, wrong, mean="arithmetic"):
        if mean not in ("arithmetic", "geometric"):
            raise ValueError(f'`mean` is "arithmetic" or "geometric", not {mean!r}.')
        if len(wrong) != len(predictions):
            raise ValueError(f"{len(predictions)} predictions but {len(wrong)} rows of wrong answers.")
        if not all(len(others) for others in wrong):
            raise ValueError("Each row needs at least one wrong answer.")
        if mean == "arithmetic":
            log_wrong = [np.log(np.mean(np.exp(others))) for others in wrong]
        else:
            log_wrong = [np.mean(others) for others in wrong]
        rows = np.exp(np.array(log_wrong) - np.asarray(predictions))
        return {
            "forget": float(np.minimum(rows, 1 / rows).mean()),
            "keep": float(np.maximum(0, 1 - rows).mean()),
            "rows": rows.tolist(),
        }
