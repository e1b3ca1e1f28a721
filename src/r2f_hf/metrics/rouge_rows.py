"""ROUGE of each row, counted as the paper says or as other projects count it."""

from __future__ import annotations

from collections.abc import Sequence

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer, Tokenizer

from .checks import check_rows
from .words import WordTokenizer


# What `rouge_rows` counts, by name: whether words are stemmed, and whether only those of the letters a to z count.
TOKENIZERS: dict[str, Tokenizer] = {
    "paper": WordTokenizer(),
    "unstemmed": WordTokenizer(stemming=False),
    "tofu": DefaultTokenizer(use_stemmer=True),
    "open-unlearning": DefaultTokenizer(use_stemmer=True),
    "muse": DefaultTokenizer(use_stemmer=False),
}
NAMES = ("rouge1_recall", "rouge1_f1", "rougeL_recall", "rougeL_f1")
# RWKU puts this in place of an empty answer.
RWKU_EMPTY = "NOANSWER"
# What other projects add to a denominator.
RWKU_EPSILON = 1e-8


def rouge_rows(predictions: Sequence[str], references: Sequence[str], definition: str) -> dict[str, list[float]]:
    """
    Compute ROUGE-1 and ROUGE-L of each row.

    Args:
        predictions (`Sequence[str]`):
            Generated answers. An empty one scores 0.
        references (`Sequence[str]`):
            True answers.
        definition (`str`):
            A key of `TOKENIZERS`, or `"rwku"`.

    Returns:
        `dict[str, list[float]]`: `rouge1_recall`, `rouge1_f1`, `rougeL_recall` and `rougeL_f1`, with a number from 0
        to 1 per row.

    Raises:
        `ValueError`: If a true answer has no word, or if there are more of the one than of the other.
    """
    check_rows(predictions=predictions, references=references)
    scores: dict[str, list[float]] = {name: [] for name in NAMES}
    if not predictions:
        raise ValueError("`predictions` has no rows.")
    tokenizer = TOKENIZERS.get(definition, WordTokenizer())
    scorer = RougeScorer(["rouge1", "rougeL"], tokenizer=tokenizer)
    for index, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        if not tokenizer.tokenize(reference):
            raise ValueError(f"Row {index}: the true answer has no word, so that no answer could contain any.")
        if definition == "rwku":
            row = _rouge_package(prediction or RWKU_EMPTY, reference)
        else:
            found = scorer.score(reference, prediction)
            row = [number for kind in ("rouge1", "rougeL") for number in (found[kind].recall, found[kind].fmeasure)]
        for name, number in zip(NAMES, row, strict=True):
            scores[name].append(float(number))
    return scores


def _rouge_package(prediction: str, reference: str) -> list[float]:
    """What the package `rouge` counts: different words, with case and punctuation, and sentences up to full stops."""
    sentences = [
        [" ".join(sentence.split()).split(" ") for sentence in text.split(".") if sentence]
        for text in (prediction, reference)
    ]
    written, true = (set().union(*each) for each in sentences)
    common = set().union(*(_common_subsequence(right, given) for right in sentences[1] for given in sentences[0]))
    numbers: list[float] = []
    for shared in (written & true, common):
        recall = len(shared) / len(true) if true else 0.0
        precision = len(shared) / len(written) if written else 0.0
        numbers += [recall, 2 * precision * recall / (precision + recall + RWKU_EPSILON)]
    return numbers


def _common_subsequence(x: list[str], y: list[str]) -> set[str]:
    """The words of a longest common subsequence."""
    lengths = [[0] * (len(y) + 1) for _ in range(len(x) + 1)]
    for i, first in enumerate(x):
        for j, second in enumerate(y):
            grown, best = lengths[i][j] + 1, max(lengths[i][j + 1], lengths[i + 1][j])
            lengths[i + 1][j + 1] = grown if first == second else best
    words, i, j = set(), len(x), len(y)
    while i and j:
        if x[i - 1] == y[j - 1]:
            words.add(x[i - 1])
            i, j = i - 1, j - 1
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return words
