"""Words of texts in any script, for ROUGE and for n-grams."""

from __future__ import annotations

from collections.abc import Sequence

import regex
from nltk.stem.porter import PorterStemmer
from nltk.tokenize.destructive import NLTKWordTokenizer
from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer


# Scripts that put no space between words: each character counts as one, as is usual for them.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
# Letters with their marks, and digits.
_WORD = regex.compile(rf"[{_UNSPACED}]\p{{M}}*|[\p{{L}}\p{{M}}\p{{N}}--{_UNSPACED}]+", flags=regex.V1)

_UNSPACED_CHARACTER = regex.compile(rf"([{_UNSPACED}]\p{{M}}*)", flags=regex.V1)
# A full stop after one of these ends no sentence. NLTK's own list is a download.
_ABBREVIATIONS = set(
    "mr mrs ms dr prof st sr jr rev gen col capt lt sgt hon no vol fig e.g i.e etc vs u.s u.k".split()
)

# Shorter words have no ending to take off, as in `rouge_score`.
_SHORTEST_STEMMED = 4


class WordTokenizer:
    """
    Splits a text into stemmed words of any script. `rouge_score`'s own knows the letters a to z only, so that a right
    answer in any other script has no word in common with the reference.

    English is split and stemmed as `rouge_score` does it.

    Args:
        stemming (`bool`, *optional*, defaults to `True`):
            Whether to take the endings off English words.
    """

    def __init__(self, stemming: bool = True) -> None:
        self.stemmer = PorterStemmer() if stemming else None

    def tokenize(self, text: str) -> list[str]:
        """The words of a text, in lower case. English ones lose their endings if the tokenizer stems."""
        words = _WORD.findall(text.lower())
        if self.stemmer is None:
            return words
        return [
            self.stemmer.stem(word) if len(word) >= _SHORTEST_STEMMED and word.isascii() else word for word in words
        ]


def running_words(text: str) -> list[str]:
    """
    The words and punctuation marks of a running text, with their case, as NLTK splits them.

    Args:
        text (`str`):
            The text. No download is needed: sentences end where NLTK finds them with a short list of English
            abbreviations. Each character counts as a word in scripts that put no space between words.

    Returns:
        `list[str]`
    """
    parameters = PunktParameters()
    parameters.abbrev_types |= _ABBREVIATIONS
    words = []
    for sentence in PunktSentenceTokenizer(parameters).tokenize(text):
        for word in NLTKWordTokenizer().tokenize(sentence):
            words += [part for part in _UNSPACED_CHARACTER.split(word) if part]
    return words


def cut_at(text: str, stops: Sequence[str]) -> str:
    """
    Cut an answer where it goes on to something else.

    Args:
        text (`str`):
            The answer.
        stops (`Sequence[str]`):
            Texts that it ends before, such as `"\\nQuestion"`.

    Returns:
        `str`
    """
    for stop in stops:
        text = text.split(stop)[0]
    return text
