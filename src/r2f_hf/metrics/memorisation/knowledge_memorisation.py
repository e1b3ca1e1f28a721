"""Knowledge memorisation, as an `evaluate` metric."""

import datasets
import evaluate
import numpy as np

from r2f_hf.metrics.checks import check_definition
from r2f_hf.metrics.rouge_rows import rouge_rows
from r2f_hf.metrics.words import cut_at


# An answer ends where a model goes on to something else.
STOPS = ("\n\n", "\nQuestion", "Question:")

_DESCRIPTION = """
How well a model answers questions about the forget set (MUSE's KnowMem, arXiv 2407.06460). It is the F1 of ROUGE-L,
without stemming, of its answer and the true one, in percent, as a mean over rows. An answer ends before an empty line,
and before another question.

MUSE counts words of the letters a to z and digits only (`definition="muse"`). open-unlearning does so too, and stems
(`definition="open-unlearning"`).
"""

_CITATION = """
@article{shi2024muse, title={{MUSE}: Machine Unlearning Six-Way Evaluation for Language Models}, author={Shi, Weijia
and Lee, Jaechan and Huang, Yangsibo and Malladi, Sadhika and Zhao, Jieyu and Holtzman, Ari and Liu, Daogao and
Zettlemoyer, Luke and Smith, Noah A. and Zhang, Chiyuan}, journal={arXiv:2407.06460}, year={2024}}
"""

_INPUTS = """
Args:
    predictions (`list[str]`): the model's answers. An empty one scores 0.
    references (`list[str]`): the true answers.
    definition (`str`, *optional*, defaults to `"paper"`): `"paper"`, `"muse"` or `"open-unlearning"`.
Returns:
    `dict`: `knowledge_memorisation` (`float`), the mean, and `rows` (`list[float]`), that of each row, from 0 to 100.
"""


class KnowledgeMemorisation(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references, definition="paper"):
        counted = check_definition(definition, "paper", "muse", "open-unlearning").replace("paper", "unstemmed")
        answers = [cut_at(prediction, STOPS) for prediction in predictions]
        rows = [100 * score for score in rouge_rows(answers, references, counted)["rougeL_f1"]]
        return {"knowledge_memorisation": float(np.mean(rows)), "rows": rows}
