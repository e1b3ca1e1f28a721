"""Quantisation ratio, as an `evaluate` metric."""

import datasets
import evaluate

from r2f_hf.metrics.checks import check_definition, check_numbers, check_rows


_DESCRIPTION = """
Whether forgetting survives coarser weights (Q of arXiv 2506.12618). With a metric m of the forget set that is the
higher the more is known:

    Q = min(m_before / m_after, 1)

It is 1 if rounding the weights brings nothing back, and near 0 if it brings much back. Where m is 0 both before and
after, m says nothing about the rounding, and is refused: give one that can still rise, such as ROUGE.

The meta-evaluation of arXiv 2605.24614 also counts a fall against a model: `definition="symmetric"` is
1 - |m_after - m_before| / (m_before + m_after).
"""

_CITATION = """
@article{dorna2025openunlearning, title={{OpenUnlearning}: Accelerating {LLM} Unlearning via Unified Benchmarking of
Methods and Metrics}, author={Dorna, Vineeth and Mekala, Anmol and Zhao, Wenlong and McCallum, Andrew and Lipton,
Zachary C. and Kolter, J. Zico and Maini, Pratyush}, journal={arXiv:2506.12618}, year={2025}}
"""

_INPUTS = """
Args:
    predictions (`list[float]`): m of each row under the quantised model, such as its probability; not negative.
    before (`list[float]`): the same under the model before.
    definition (`str`, *optional*, defaults to `"paper"`): `"paper"` or `"symmetric"`.
Returns:
    `dict`: `quantisation_ratio` (`float`), from 0 to 1, of the means over rows.
"""


class QuantisationRatio(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("float64")}),
        )

    def _compute(self, predictions, before, definition="paper"):
        check_definition(definition, "paper", "symmetric")
        check_rows(predictions=predictions, before=before)
        new = float(check_numbers(predictions, "predictions", low=0).mean())
        old = float(check_numbers(before, "before", low=0).mean())
        if new == old == 0:
            raise ValueError("All rows are 0 both before and after, which says nothing about the weights in between.")
        if definition == "symmetric":
            return {"quantisation_ratio": 1 - abs(new - old) / (new + old)}
        return {"quantisation_ratio": min(old / new, 1.0) if new > 0 else 1.0}
