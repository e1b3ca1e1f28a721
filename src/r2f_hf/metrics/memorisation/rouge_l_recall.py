"""ROUGE-L recall of generated answers, as an `evaluate` metric: the number of `rouge` that TOFU reports."""

import datasets
import evaluate
import numpy as np

from r2f_hf.metrics.rouge_rows import rouge_rows


_DESCRIPTION = """
How much of the true answer a generated answer contains: the recall of their longest common subsequence of words
(ROUGE-L, Lin 2004), as a mean over rows. TOFU reports it of generated answers. `rouge` gives it next to ROUGE-1 and
F1.
"""

_CITATION = """
@inproceedings{lin2004rouge, title={{ROUGE}: A Package for Automatic Evaluation of Summaries}, author={Lin, Chin-Yew},
booktitle={Text Summarization Branches Out}, year={2004}}
"""

_INPUTS = """
Args:
    predictions (`list[str]`): generated answers. An empty one scores 0.
    references (`list[str]`): true answers.
Returns:
    `dict`: `rouge_l_recall` (`float`), the mean, and `rows` (`list[float]`), the recall of each row, from 0 to 1.
"""


class RougeLRecall(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references):
        rows = rouge_rows(predictions, references, "paper")["rougeL_recall"]
        return {"rouge_l_recall": float(np.mean(rows)), "rows": rows}
