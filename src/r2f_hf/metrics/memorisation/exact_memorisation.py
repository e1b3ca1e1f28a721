"""Exact memorisation, as an `evaluate` metric."""

import datasets
import evaluate
import numpy as np

from r2f_hf.metrics.checks import check_definition
from r2f_hf.metrics.hits import token_hits


_DESCRIPTION = """
How much of the answers greedy decoding gets right if it reads the true answer up to each token (arXiv 2205.10770). It
is the share of an answer's tokens that are the likeliest ones, as a mean over rows.

open-unlearning and UDS leave the last token of each answer out, as if it always closed the answer.
`definition="open-unlearning"` gives their numbers.
"""

_CITATION = """
@article{tirumala2022memorization, title={Memorization Without Overfitting: Analyzing the Training Dynamics of Large
Language Models}, author={Tirumala, Kushal and Markosyan, Aram H. and Zettlemoyer, Luke and Aghajanyan, Armen},
journal={arXiv:2205.10770}, year={2022}}
"""

_INPUTS = """
Args:
    predictions (`list[list[bool]]`): for each row, whether each token of the answer is the likeliest one after the
        question and the tokens before it. [`token_statistics`] has them as `hits`.
    definition (`str`, *optional*, defaults to `"paper"`): `"paper"` or `"open-unlearning"`.
Returns:
    `dict`: `exact_memorisation` (`float`), the mean, and `rows` (`list[float]`), the share of each row, from 0 to 1.
"""


class ExactMemorisation(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("bool"))}),
        )

    def _compute(self, predictions, definition="paper"):
        check_definition(definition, "paper", "open-unlearning")
        # open-unlearning averages in fp32.
        precision = np.float32 if definition == "open-unlearning" else np.float64
        rows = [float(np.mean(hits, dtype=precision)) for hits in token_hits(predictions, definition)]
        return {"exact_memorisation": float(np.mean(rows)), "rows": rows}
