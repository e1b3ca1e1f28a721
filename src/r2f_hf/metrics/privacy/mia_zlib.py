"""Membership attack by loss and compressed size, as an `evaluate` metric."""

import zlib

import datasets
import evaluate

from r2f_hf.metrics.checks import check_rows
from r2f_hf.metrics.membership import attack


_DESCRIPTION = """
Whether the loss for the information in a text tells forgotten rows from rows that the model never saw (Carlini et al.,
arXiv 2012.07805). The score is the mean loss per token over the bytes of the text after zlib's compression.

A row scores the higher the less it looks like one that was seen. `auc` is the probability that a row of the holdout
set scores higher than one of the forget set. It is 0.5 if the score cannot tell, and 1 if every forget row was plainly
seen. Below 0.5 the forget rows look *less* familiar than rows that the model never saw, which gives the request away
too. `p_value` is that of a Mann-Whitney test against 0.5.
"""

_CITATION = r"""
@article{carlini2021extracting, title={Extracting Training Data from Large Language Models}, author={Carlini, Nicholas
and Tram{\`e}r, Florian and Wallace, Eric and others}, journal={arXiv:2012.07805}, year={2020}}
"""

_INPUTS = """
Args:
    predictions (`list[float]`): mean loss per token of each row of the forget set.
    texts (`list[str]`): the texts that the losses are of, with a leading space where the tokens have one.
    holdout (`list[float]`): mean loss per token of rows that the model never saw.
    holdout_texts (`list[str]`): their texts.
Returns:
    `dict`: `auc` and `p_value` (`float`), and `forget` and `holdout` (`list[float]`), the score of each row.
"""


class MiaZlib(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("float64")}),
        )

    def _compute(self, predictions, texts, holdout, holdout_texts):
        return attack(per_byte(predictions, texts, "texts"), per_byte(holdout, holdout_texts, "holdout_texts"))


def per_byte(losses, texts, name):
    check_rows(**{"losses": losses, name: texts})
    for index, text in enumerate(texts):
        if not text:
            raise ValueError(f"Row {index} of `{name}` is empty: fill it in, or leave the row out.")
    return [loss / len(zlib.compress(text.encode())) for loss, text in zip(losses, texts, strict=True)]
