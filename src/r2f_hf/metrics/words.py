"""Words of texts in any script, for ROUGE."""

from __future__ import annotations

import regex
from nltk.stem.porter import PorterStemmer


# Scripts that put no space between words: each character counts as one, as is usual for them.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
# Letters with their marks, and digits.
_WORD = regex.compile(rf"[{_UNSPACED}]\p{{M}}*|[\p{{L}}\p{{M}}\p{{N}}--{_UNSPACED}]+", flags=regex.V1)

# Shorter words have no ending to take off, as in `rouge_score`.
_SHORTEST_STEMMED = 4


class WordTokenizer:
    """
    Splits a text into stemmed words of any script. `rouge_score`'s own knows the letters a to z only, so that a right
    answer in any other script has no word in common with the reference.

    English is split and stemmed as `rouge_score` does it.
    """

    def __init__(self) -> None:
        self.stemmer = PorterStemmer()

    def tokenize(self, text: str) -> list[str]:
        """The words of a text, in lower case; English ones without their endings."""
        words = _WORD.findall(text.lower())
        return [
            self.stemmer.stem(word) if len(word) >= _SHORTEST_STEMMED and word.isascii() else word for word in words
        ]
