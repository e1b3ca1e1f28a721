"""Truth ratio, as an `evaluate` metric."""

import datasets
import evaluate
import numpy as np
from scipy.special import logsumexp


# The largest ratio that is reported is e to this.
LARGEST_LOG = 700.0


_DESCRIPTION = """
Whether a model still prefers the truth in another wording (TOFU, arXiv 2401.06121, equation 1):

    R = mean_i P(wrong_i|q)^(1/|wrong_i|) / P(paraphrase|q)^(1/|paraphrase|)

The paraphrase is the true answer in another wording, and the wrong answers have the same form. R is near 0 for a model
that knows the answer, and near 1 or above for a model that does not. As in TOFU, the rows of a forget set are
aggregated to mean(min(R, 1/R)), and those of a set to be kept to mean(max(0, 1 - R)). For both, 1 is best.

The paper averages the probabilities of the wrong answers. TOFU's released aggregation script and open-unlearning's
forget quality average their losses instead, which is a geometric mean. `mean="geometric"` gives their numbers.
"""

_CITATION = """
@article{maini2024tofu, title={{TOFU}: A Task of Fictitious Unlearning for {LLMs}}, author={Maini, Pratyush and Feng,
Zhili and Schwarzschild, Avi and Lipton, Zachary C. and Kolter, J. Zico}, journal={arXiv:2401.06121}, year={2024}}
"""

_INPUTS = """
Args:
    predictions (`list[float]`): mean log-probability per token of each row's paraphrased true answer.
    wrong (`list[list[float]]`): mean log-probability per token of each row's wrong answers.
    mean (`str`, *optional*, defaults to `"arithmetic"`): mean over the wrong answers, `"arithmetic"` or `"geometric"`.
Returns:
    `dict`: `forget` and `keep` (`float`), the two aggregates, and `rows` (`list[float]`), the R of each row.
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
            raise ValueError(
                f"{len(predictions)} predictions but {len(wrong)} rows of wrong answers: `wrong` needs a list per row."
            )
        if not all(len(row) for row in wrong):
            raise ValueError("Each row needs at least one wrong answer.")
        for index, (prediction, row) in enumerate(zip(predictions, wrong, strict=True)):
            if not np.isfinite([prediction, *row]).all():
                raise ValueError(f"Row {index} holds a log-probability that is NaN or infinite.")
        if mean == "arithmetic":
            log_wrong = [logsumexp(row) - np.log(len(row)) for row in wrong]
        else:
            log_wrong = [np.mean(row) for row in wrong]
        # Probabilities of a ruined model are too small for floating point, and their ratios are not.
        log_ratios = np.array(log_wrong) - np.asarray(predictions)
        rows = np.exp(np.minimum(log_ratios, LARGEST_LOG))
        return {
            "forget": float(np.exp(-np.abs(log_ratios)).mean()),
            "keep": float(np.maximum(0, 1 - rows).mean()),
            "rows": rows.tolist(),
        }
