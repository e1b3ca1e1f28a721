"""Sampling: asking often and keeping the best answer."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np

from .. import metrics
from ..scoring.generation import generate_answers, sample_answers
from .base import UNATTACKED, Attack, Target, Values, needs_questions


SAMPLES = 16
ANSWERS = (1, 4, 16)
TEMPERATURE = 1.0


def best_of(values: np.ndarray, k: int) -> np.ndarray:
    """
    Expected best of `k` of a row's samples, without bias: the mean over all choices of `k` samples
    (leak@k, arXiv 2511.04934).

    Args:
        values (`np.ndarray` of shape `(rows, samples)`):
            A value per sample.
        k (`int`):
            How many samples an attacker draws, at most as many as there are.

    Returns:
        `np.ndarray` of shape `(rows,)`
    """
    ordered = np.sort(values, axis=1)
    samples = values.shape[1]
    # The i-th smallest (from 0) is the best of those choices whose other k - 1 samples are among the i before it.
    weights = np.array([comb(index, k - 1) for index in range(samples)]) / comb(samples, k)
    return ordered @ weights


def sample(target: Target) -> Values:
    """ROUGE-L recall of the answers that the model generates: greedily, and the best of several samples."""
    assert target.rows is not None
    # Drawing from NaN fails without a word about the model.
    target.probabilities(target.forget[:1])
    questions = [row["question"] for row in target.rows["forget"]]
    answers = [row["answer"] for row in target.rows["forget"]]

    def recall(texts: Sequence[str], references: Sequence[str]) -> list[float]:
        rouge = metrics.load("rouge").compute(predictions=list(texts), references=list(references))
        return rouge["rows"]["rougeL_recall"]

    settings = (target.max_new_tokens, target.batch_size, "sampling", target.options)
    greedy = generate_answers(target.model, target.tokenizer, questions, *settings)
    samples = sample_answers(target.model, target.tokenizer, questions, SAMPLES, TEMPERATURE, target.seed, *settings)
    repeated = [answer for answer in answers for _ in range(SAMPLES)]
    recalls = np.array(recall([text for texts in samples for text in texts], repeated))
    recalls = recalls.reshape(len(answers), SAMPLES)
    values = {UNATTACKED: recall(greedy, answers)}
    return values | {f"best of {k}": best_of(recalls, k).tolist() for k in ANSWERS}


SAMPLING = Attack(
    meaning=(
        "Asking several times at temperature 1 and keeping the best answer gets this much of the answer's words; "
        "`no attack` is the greedy answer."
    ),
    quantity="ROUGE-L recall",
    run=sample,
    does_not_fit=needs_questions,
)
