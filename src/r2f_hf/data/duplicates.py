"""Rows of two sets that nearly repeat each other: keeping one undoes the forgetting of the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from datasketch import MinHash, MinHashLSH

from .rows import normal_form


# Words that stand next to each other and are compared together.
SHINGLE = 2
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
            Estimated share of word pairs that the two have in common (Jaccard), from 0 to 1.
    """

    first: int
    second: int
    similarity: float


def near_duplicates(
    first: Sequence[Sequence[str]], second: Sequence[Sequence[str]], threshold: float = 0.6
) -> list[NearDuplicate]:
    """
    Find the rows of two sets that share most of their word pairs, by MinHash (Broder 1997).

    Args:
        first (`Sequence[Sequence[str]]`):
            The texts of each row of the first set.
        second (`Sequence[Sequence[str]]`):
            Those of the second set.
        threshold (`float`, *optional*, defaults to `0.6`):
            Least similarity.

    Returns:
        `list[NearDuplicate]`: The most alike first.
    """
    index = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS)
    hashes = [_hash(texts) for texts in second]
    for number, each in enumerate(hashes):
        index.insert(number, each)
    pairs = []
    for number, texts in enumerate(first):
        own = _hash(texts)
        for other in index.query(own):
            similarity = own.jaccard(hashes[other])
            if similarity >= threshold:
                pairs.append(NearDuplicate(number, other, similarity))
    return sorted(pairs, key=lambda pair: (-pair.similarity, pair.first, pair.second))


def _hash(texts: Sequence[str]) -> MinHash:
    words = " ".join(normal_form(texts)).split()
    shingles = [" ".join(words[start : start + SHINGLE]) for start in range(max(1, len(words) - SHINGLE + 1))]
    found = MinHash(num_perm=PERMUTATIONS, seed=1)
    found.update_batch([shingle.encode() for shingle in shingles])
    return found
