"""Accuracy of multiple choice, as an `evaluate` metric."""

import datasets
import evaluate
import numpy as np

from r2f_hf.metrics.checks import check_definition, check_lists, check_rows


_DESCRIPTION = """
How many questions a model answers right if it has to choose (as in lm-evaluation-harness). It chooses the choice with
the largest log-likelihood (`acc`), with the largest one per character of the choice (`acc_norm`), or with the largest
one per byte (`acc_bytes`).

Where choices are tied, the row counts as one over their number if the right one is among them. lm-evaluation-harness
takes the first of them (`definition="lm-eval"`). A model that finds all choices impossible is then right whenever the
first one is.
"""

_CITATION = """
@misc{eval-harness, title={A framework for few-shot language model evaluation}, author={Gao, Leo and others},
howpublished={github.com/EleutherAI/lm-evaluation-harness}, year={2024}}
"""

_INPUTS = """
Args:
    predictions (`list[list[float]]`): log-likelihood of each choice, summed over its tokens, for each row.
    labels (`list[int]`): number of the right choice of each row, from 0.
    choices (`list[list[str]]`): the choices' texts, without the space in front.
    definition (`str`, *optional*, defaults to `"paper"`): `"paper"` or `"lm-eval"`.
Returns:
    `dict`: `acc`, `acc_norm` and `acc_bytes` (`float`), the means, and `rows` (`dict[str, list[float]]`), each of them
        for each row.
"""


class MultipleChoice(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("float64"))}),
        )

    def _compute(self, predictions, labels, choices, definition="paper"):
        check_definition(definition, "paper", "lm-eval")
        check_rows(predictions=predictions, labels=labels, choices=choices)
        log_likelihoods = check_lists(predictions, "predictions", "choice", infinite=True)
        rows = {"acc": [], "acc_norm": [], "acc_bytes": []}
        for index, (scores, label, texts) in enumerate(zip(log_likelihoods, labels, choices, strict=True)):
            if len(texts) != len(scores) or len(texts) < 2 or not all(texts):
                raise ValueError(
                    f"Row {index} has {len(scores)} log-likelihoods and {len(texts)} choices. It needs at least two "
                    "choices that are not empty, and a log-likelihood of each."
                )
            if not 0 <= label < len(texts):
                raise ValueError(f"Row {index} has {len(texts)} choices, and the label {label}. Labels start at 0.")
            for name, lengths in (
                ("acc", 1),
                ("acc_norm", np.array([len(text) for text in texts])),
                ("acc_bytes", np.array([len(text.encode()) for text in texts])),
            ):
                best = np.flatnonzero(scores / lengths == (scores / lengths).max())
                best = best[:1] if definition == "lm-eval" else best
                rows[name].append(float(label in best) / len(best))
        return {name: float(np.mean(values)) for name, values in rows.items()} | {"rows": rows}
