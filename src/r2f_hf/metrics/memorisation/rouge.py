"""ROUGE-1 and ROUGE-L of generated answers, as an `evaluate` metric."""

import datasets
import evaluate
import numpy as np

from r2f_hf.metrics.checks import check_definition
from r2f_hf.metrics.rouge_rows import rouge_rows


_DESCRIPTION = """
How much of the true answer a generated answer contains (recall), and how much the two have in common (F1), as means
over rows. ROUGE-1 compares their words, and ROUGE-L their longest common subsequence of words (Lin 2004). TOFU reports
the recall of ROUGE-L. The `rouge_score` package counts.

Words are those of every script, stemmed if they are English. TOFU and open-unlearning count words of the letters a to
z and digits only. MUSE does so too, and does not stem. RWKU uses the `rouge` package, where case and punctuation
count, a word counts once, and a text is split at full stops. `definition` takes their names and gives their numbers.
"""

_CITATION = """
@inproceedings{lin2004rouge, title={{ROUGE}: A Package for Automatic Evaluation of Summaries}, author={Lin, Chin-Yew},
booktitle={Text Summarization Branches Out}, year={2004}}
"""

_INPUTS = """
Args:
    predictions (`list[str]`): generated answers. An empty one scores 0.
    references (`list[str]`): true answers.
    definition (`str`, *optional*, defaults to `"paper"`): `"paper"`, `"unstemmed"`, `"tofu"`, `"open-unlearning"`,
        `"muse"` or `"rwku"`.
Returns:
    `dict`: `rouge1_recall`, `rouge1_f1`, `rougeL_recall` and `rougeL_f1` (`float`), the means, and `rows`
        (`dict[str, list[float]]`), each of them for each row, from 0 to 1.
"""


class Rouge(evaluate.Metric):
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
        check_definition(definition, "paper", "unstemmed", "tofu", "open-unlearning", "muse", "rwku")
        rows = rouge_rows(predictions, references, definition)
        return {name: float(np.mean(values)) for name, values in rows.items()} | {"rows": rows}
