"""ROUGE-L recall of generated answers, as an `evaluate` metric."""

import datasets
import evaluate
import numpy as np
from rouge_score.rouge_scorer import RougeScorer

from r2f_hf.metrics.words import WordTokenizer


_DESCRIPTION = """
How much of the true answer a generated answer contains: the recall of their longest common subsequence of stemmed
words (ROUGE-L, Lin 2004), as a mean over rows. TOFU measures generated answers with it. It uses the `rouge_score`
package.
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
        tokenizer = WordTokenizer()
        scorer = RougeScorer(["rougeL"], tokenizer=tokenizer)
        for index, reference in enumerate(references):
            if not tokenizer.tokenize(reference):
                raise ValueError(f"Row {index}: the true answer has no word, so that no answer could contain any.")
        rows = [
            scorer.score(reference, prediction)["rougeL"].recall
            for prediction, reference in zip(predictions, references, strict=True)
        ]
        return {"rouge_l_recall": float(np.mean(rows)), "rows": rows}
