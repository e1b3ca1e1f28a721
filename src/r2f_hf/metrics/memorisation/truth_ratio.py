"""Truth ratio, as an `evaluate` metric."""

import datasets
import evaluate
import numpy as np
from scipy.special import logsumexp

from r2f_hf.metrics.checks import check_definition, check_numbers


# The largest ratio that is reported is e to this.
LARGEST_LOG = 700.0
# What open-unlearning adds to a denominator.
EPSILON = 1e-10

_DESCRIPTION = """
Whether a model still prefers the truth in another wording (TOFU, arXiv 2401.06121, equation 1):

    R = mean_i P(wrong_i|q)^(1/|wrong_i|) / P(paraphrase|q)^(1/|paraphrase|)

The paraphrase is the true answer in another wording, and the wrong answers have the same form. R is near 0 for a model
that knows the answer, and near 1 or above for a model that does not. The rows are aggregated in three ways, with
open-unlearning's names: `closer_to_1_better` is mean(min(R, 1/R)), which TOFU takes for a forget set; `true_better` is
mean(max(0, 1 - R)), which it takes for sets to be kept; `prob_mean` is mean(1 / (1 + R)), the share of the probability
that the truth has. For the first two, 1 is best.

The paper averages the probabilities of the wrong answers. TOFU's released aggregation script and UDS average their
losses instead, which is a geometric mean; `definition="tofu"` gives their numbers. open-unlearning does so too, and
adds 1e-10 to the denominators; `definition="open-unlearning"` gives its numbers.
"""

_CITATION = """
@article{maini2024tofu, title={{TOFU}: A Task of Fictitious Unlearning for {LLMs}}, author={Maini, Pratyush and Feng,
Zhili and Schwarzschild, Avi and Lipton, Zachary C. and Kolter, J. Zico}, journal={arXiv:2401.06121}, year={2024}}
"""

_INPUTS = """
Args:
    predictions (`list[float]`): mean log-probability per token of each row's paraphrased true answer.
    wrong (`list[list[float]]`): mean log-probability per token of each row's wrong answers.
    definition (`str`, *optional*, defaults to `"paper"`): `"paper"`, `"tofu"` or `"open-unlearning"`.
Returns:
    `dict`: `closer_to_1_better`, `true_better` and `prob_mean` (`float`), the aggregates; `forget` and `keep`, the
        first two by what TOFU takes them for; and `rows` (`list[float]`), the R of each row.
"""


class TruthRatio(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("float64")}),
        )

    def _compute(self, predictions, wrong, definition="paper"):
        check_definition(definition, "paper", "tofu", "open-unlearning")
        if len(wrong) != len(predictions):
            raise ValueError(
                f"{len(predictions)} predictions but {len(wrong)} rows of wrong answers: `wrong` needs a list per row."
            )
        if not all(len(row) for row in wrong):
            raise ValueError("Each row needs at least one wrong answer.")
        for index, (prediction, row) in enumerate(zip(predictions, wrong, strict=True)):
            if prediction is None or not np.isfinite([prediction, *row]).all():
                raise ValueError(f"Row {index} holds a log-probability that is NaN or infinite.")
        true = check_numbers(predictions, "predictions")
        if definition == "paper":
            log_wrong = np.array([logsumexp(row) - np.log(len(row)) for row in wrong])
        else:
            log_wrong = np.array([np.mean(row) for row in wrong])
        # Probabilities of a ruined model are too small for floating point, and their ratios are not.
        epsilon = np.log(EPSILON) if definition == "open-unlearning" else -np.inf
        log_ratios = log_wrong - np.logaddexp(true, epsilon)
        rows = np.exp(np.minimum(log_ratios, LARGEST_LOG))
        nearness = np.exp(np.minimum(log_ratios, -np.logaddexp(log_ratios, epsilon)))
        shares = np.exp(true - np.logaddexp(np.logaddexp(true, log_wrong), epsilon))
        # TOFU takes the first for the set to forget, and the second for sets to keep.
        forget, keep = float(nearness.mean()), float(np.maximum(0, 1 - rows).mean())
        return {
            "closer_to_1_better": forget,
            "true_better": keep,
            "prob_mean": float(shares.mean()),
            "forget": forget,
            "keep": keep,
            "rows": rows.tolist(),
        }
