"""Rows of two sets that nearly repeat each other: keeping one undoes the forgetting of the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import regex
from datasketch import MinHash, MinHashLSH

from .rows import normal_form


Words = Callable[[str], Sequence[str]]

# Words that stand next to each other and are compared together.
SHINGLE = 2
# Those that a document is searched for. Nearly every pair of words stands somewhere in a long text.
LONG_SHINGLE = 4
# Words that a document has at least, and a text in it.
DOCUMENT, CONTAINED = 50, 6
# Hash functions; the similarity is estimated to about 1/√PERMUTATIONS.
PERMUTATIONS = 128


class NearDuplicate(NamedTuple):
    """
    Two rows that are alike.

    Args:
        first (`int`):
            Number of the row in the first set.
        second (`int`):
            Number of the row in the second set.
        similarity (`float`):
            From 0 to 1: the estimated share of word pairs that the two have in common (Jaccard), or the share of the
            second row's words that stand in the first (containment).
    """

    first: int
    second: int
    similarity: float


def near_duplicates(
    first: Sequence[Sequence[str]],
    second: Sequence[Sequence[str]],
    threshold: float = 0.6,
    words: Words = str.split,
) -> list[NearDuplicate]:
    """
    Find the rows of two sets that share most of their word pairs, by MinHash (Broder 1997).

    Args:
        first (`Sequence[Sequence[str]]`):
            The texts of each row of the first set. Letter case and punctuation make no difference.
        second (`Sequence[Sequence[str]]`):
            Those of the second set.
        threshold (`float`, *optional*, defaults to `0.6`):
            Least similarity.
        words (`Callable[[str], Sequence[str]]`, *optional*, defaults to `str.split`):
            Splits a text into words. Scripts without spaces need another than the default.

    Returns:
        `list[NearDuplicate]`: The most alike first.
    """
    index = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS)
    hashes = [_hash(texts, words) for texts in second]
    for number, each in enumerate(hashes):
        index.insert(number, each)
    pairs = []
    for number, texts in enumerate(first):
        own = _hash(texts, words)
        for other in index.query(own):
            similarity = own.jaccard(hashes[other])
            if similarity >= threshold:
                pairs.append(NearDuplicate(number, other, similarity))
    return sorted(pairs, key=lambda pair: (-pair.similarity, pair.first, pair.second))


def contained_rows(
    documents: Sequence[Sequence[str]],
    rows: Sequence[Sequence[str]],
    threshold: float = 0.6,
    words: Words = str.split,
) -> list[NearDuplicate]:
    """
    Find the rows that have a text which stands in a document of another set. The two may have few words in common,
    because the document says much else.

    Args:
        documents (`Sequence[Sequence[str]]`):
            The texts of each row of the set that may have documents: rows of at least 50 words.
        rows (`Sequence[Sequence[str]]`):
            The texts of each row of the other set. Texts of fewer than 6 words are passed over.
        threshold (`float`, *optional*, defaults to `0.6`):
            Least share of the text, in sequences of four words.
        words (`Callable[[str], Sequence[str]]`, *optional*, defaults to `str.split`):
            Splits a text into words.

    Returns:
        `list[NearDuplicate]`: The most alike first; `first` is the document.
    """
    sizes: dict[tuple[int, int], int] = {}
    where: dict[str, list[tuple[int, int]]] = {}
    for number, texts in enumerate(rows):
        for place, text in enumerate(texts):
            found = _words(text, words)
            if len(found) >= CONTAINED:
                shingles = _shingles(found, LONG_SHINGLE)
                sizes[number, place] = len(shingles)
                for shingle in shingles:
                    where.setdefault(shingle, []).append((number, place))
    pairs = []
    for number, texts in enumerate(documents):
        found = [_words(text, words) for text in texts]
        if sum(map(len, found)) < DOCUMENT:
            continue
        shingles = set().union(*(_shingles(each, LONG_SHINGLE) for each in found))
        shared = Counter(text for shingle in shingles for text in where.get(shingle, ()))
        best: dict[int, float] = {}
        for (row, place), count in shared.items():
            best[row] = max(best.get(row, 0.0), count / sizes[row, place])
        pairs += [NearDuplicate(number, row, share) for row, share in best.items() if share >= threshold]
    return sorted(pairs, key=lambda pair: (-pair.similarity, pair.first, pair.second))


def _words(text: str, words: Words) -> list[str]:
    """The words of a text without punctuation, unless it has nothing else."""
    (normal,) = normal_form([text])
    plain = regex.sub(r"[^\p{L}\p{M}\p{N}]+", " ", normal).strip()
    return list(words(plain or normal)) or normal.split()


def _shingles(words: Sequence[str], size: int) -> set[str]:
    return {" ".join(words[start : start + size]) for start in range(max(1, len(words) - size + 1))}


def _hash(texts: Sequence[str], words: Words) -> MinHash:
    found = MinHash(num_perm=PERMUTATIONS, seed=1)
    found.update_batch([shingle.encode() for shingle in _shingles(_words(" ".join(texts), words), SHINGLE)])
    return found
