"""ROUGE-L recall of generated answers, as an `evaluate` metric."""

import datasets
import evaluate
import numpy as np
from rouge_score.rouge_scorer import RougeScorer


_DESCRIPTION = """
How much of the true answer a generated one contains: recall of the longest common subsequence of stemmed words
(ROUGE-L, Lin 2004), mean over rows. TOFU's generation metric. Uses the `rouge_score` package.
"""

_CITATION = """
@inproceedings{lin2004rouge, title={{ROUGE}: A Package for Automatic Evaluation of Summaries}, author={Lin, Chin-Yew},
booktitle={Text Summarization Branches Out}, year={2004}}
"""

_INPUTS = """
Args:
    predictions (`list[str]`): generated answers.
    references (`list[str]`): true answers.
Returns:
    `dict`: `rouge_l_recall` (`float`), the mean, and `rows` (`list[float]`).
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
        scorer = RougeScorer(["rougeL"], use_stemmer=True)
        rows = [
            scorer.score(reference, prediction)["rougeL"].recall
            for prediction, reference in zip(predictions, references, strict=True)
        ]
        return {"rouge_l_recall": float(np.mean(rows)), "rows": rows}
