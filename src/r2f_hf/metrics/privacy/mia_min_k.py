"""Membership attack by the least likely tokens, as an `evaluate` metric."""

import datasets
import evaluate

from r2f_hf.metrics.checks import check_definition, check_lists
from r2f_hf.metrics.membership import attack, lowest


_DESCRIPTION = """
Whether the least likely tokens tell forgotten rows from rows that the model never saw (Min-K%, Shi et al., arXiv
2310.16789). The score is minus the mean log-probability of the k n least likely of a row's n tokens, of at least one.

A row scores the higher the less it looks like one that was seen. `auc` is the probability that a row of the holdout
set scores higher than one of the forget set. It is 0.5 if the score cannot tell, and 1 if every forget row was plainly
seen. Below 0.5 the forget rows look *less* familiar than rows that the model never saw, which gives the request away
too. `p_value` is that of a Mann-Whitney test against 0.5.

MUSE's and RWKU's code takes no token of a text that is too short, and gives NaN. open-unlearning leaves the last token
out, as if it always closed the text (`definition="open-unlearning"`). MUSE and open-unlearning take 40% by default.
"""

_CITATION = """
@article{shi2023detecting, title={Detecting Pretraining Data from Large Language Models}, author={Shi, Weijia and
Ajith, Anirudh and Xia, Mengzhou and Huang, Yangsibo and Liu, Daogao and Blevins, Terra and Chen, Danqi and
Zettlemoyer, Luke}, journal={arXiv:2310.16789}, year={2023}}
"""

_INPUTS = """
Args:
    predictions (`list[list[float]]`): log-probability of each token, for each row of the forget set.
    holdout (`list[list[float]]`): the same of rows that the model never saw.
    k (`float`, *optional*, defaults to `0.4`): share of the tokens.
    definition (`str`, *optional*, defaults to `"paper"`): `"paper"` or `"open-unlearning"`.
Returns:
    `dict`: `auc` and `p_value` (`float`), and `forget` and `holdout` (`list[float]`), the score of each row.
"""


class MiaMinK(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("float64"))}),
        )

    def _compute(self, predictions, holdout, k=0.4, definition="paper"):
        check_definition(definition, "paper", "open-unlearning")
        forget = check_lists(predictions, "predictions", "token", infinite=True)
        others = check_lists(holdout, "holdout", "token", infinite=True)
        return attack(lowest(forget, k, definition), lowest(others, k, definition))
