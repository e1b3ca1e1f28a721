"""Fluency, as an `evaluate` metric."""

from collections import Counter

import datasets
import evaluate
import numpy as np
from scipy.stats import entropy

from r2f_hf.metrics.words import running_words


_DESCRIPTION = """
Whether a model still writes varied text, or repeats itself (RWKU, arXiv 2406.10890). It is the entropy in bits of a
text's pairs and triples of words, as (2/3 H_2 + 4/3 H_3) / 2, as a mean over texts. The longer a text, the higher the
entropy can be: compare texts of one length. A text of one word repeated has 0, and so has one of fewer than three
words.

Words and punctuation are split as NLTK does it, which RWKU uses. No download is needed: a short English list of
abbreviations takes the place of NLTK's.
"""

_CITATION = """
@article{jin2024rwku, title={{RWKU}: Benchmarking Real-World Knowledge Unlearning for Large Language Models},
author={Jin, Zhuoran and Cao, Pengfei and Wang, Chenhao and He, Zhitao and Yuan, Hongbang and Li, Jiachun and Chen,
Yubo and Liu, Kang and Zhao, Jun}, journal={arXiv:2406.10890}, year={2024}}
"""

_INPUTS = """
Args:
    predictions (`list[str]`): generated texts.
Returns:
    `dict`: `fluency` (`float`), the mean; `rows` (`list[float]`), that of each text; and `bigrams` and `trigrams`
        (`list[float]`), its parts.
"""


class Fluency(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions):
        if len(predictions) == 0:
            raise ValueError("`predictions` has no rows.")
        words = [running_words(text or "") for text in predictions]
        bigrams = [n_gram_entropy(row, 2) for row in words]
        trigrams = [n_gram_entropy(row, 3) for row in words]
        rows = [(2 / 3 * two + 4 / 3 * three) / 2 for two, three in zip(bigrams, trigrams, strict=True)]
        return {"fluency": float(np.mean(rows)), "rows": rows, "bigrams": bigrams, "trigrams": trigrams}


def n_gram_entropy(words, n):
    counts = Counter(zip(*(words[start:] for start in range(n)), strict=False))
    return float(entropy(list(counts.values()), base=2)) if counts else 0.0
