"""Membership attack against a reference model, as an `evaluate` metric."""

import datasets
import evaluate

from r2f_hf.metrics.checks import check_definition, check_numbers, check_rows
from r2f_hf.metrics.membership import attack


_DESCRIPTION = """
Whether the loss tells forgotten rows from unseen ones if it is compared with that of a model that saw neither (Carlini
et al., arXiv 2012.07805). The score is the mean loss per token minus the reference model's.

A row scores the higher the less it looks like one that was seen. `auc` is the probability that a row of the holdout
set scores higher than one of the forget set. It is 0.5 if the score cannot tell, and 1 if every forget row was plainly
seen. Below 0.5 the forget rows look *less* familiar than rows that the model never saw, which gives the request away
too. `p_value` is that of a Mann-Whitney test against 0.5.

MUSE divides the two losses instead: `definition="muse"`.
"""

_CITATION = r"""
@article{carlini2021extracting, title={Extracting Training Data from Large Language Models}, author={Carlini, Nicholas
and Tram{\`e}r, Florian and Wallace, Eric and others}, journal={arXiv:2012.07805}, year={2020}}
"""

_INPUTS = """
Args:
    predictions (`list[float]`): mean loss per token of each row of the forget set.
    reference (`list[float]`): the same under the reference model.
    holdout (`list[float]`): mean loss per token of rows that the model never saw.
    holdout_reference (`list[float]`): the same under the reference model.
    definition (`str`, *optional*, defaults to `"paper"`): `"paper"` or `"muse"`.
Returns:
    `dict`: `auc` and `p_value` (`float`), and `forget` and `holdout` (`list[float]`), the score of each row.
"""


class MiaReference(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("float64")}),
        )

    def _compute(self, predictions, reference, holdout, holdout_reference, definition="paper"):
        check_definition(definition, "paper", "muse")
        check_rows(predictions=predictions, reference=reference)
        check_rows(holdout=holdout, holdout_reference=holdout_reference)
        pairs = (
            (check_numbers(predictions, "predictions"), check_numbers(reference, "reference")),
            (check_numbers(holdout, "holdout"), check_numbers(holdout_reference, "holdout_reference")),
        )
        if definition == "paper":
            return attack(*(own - other for own, other in pairs))
        for _, other in pairs:
            if (other == 0).any():
                raise ValueError(
                    f"Row {(other == 0).argmax()} has a loss of 0 under the reference, and is divided by it."
                )
        return attack(*(own / other for own, other in pairs))
