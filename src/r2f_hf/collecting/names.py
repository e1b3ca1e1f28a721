"""A person's name in texts, and invented names in its place: what a model says of those, it says of anybody."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache


# First, middle and last names of people who do not exist, women and men of several origins in turn: a model guesses
# from a name where somebody was born, and that is no knowledge of the person.
INVENTED = """
Marten Aldous Vellacott, Rosalind Mabel Thackwray, Clayton Everett Burdock
Ingrid Solveig Haverland, Joachim Detlef Wiesmuth, Margot Elodie Tavernel
Ramiro Esteban Quintaval, Paloma Ines Arrizaga, Thiago Caetano Bragalva
Tadeusz Jerzy Wilkomir, Ludmila Pavlovna Grechina, Daniyar Bekzat Suleimenko
Leila Noor Hamzari, Tariq Idris Al-Sabbour, Khalid Munir Al-Rashwan
Zeynep Gul Karadere, Farhan Bilal Qasmiri, Shirin Parvin Daneshpour
Priya Anjali Venkatarey, Rohan Dev Chaturmani, Lakshmi Devi Subbarayan
Kofi Yaw Adabrah, Nneka Amara Obiakonwa, Sipho Themba Mokwadi
Mei Lin Zhaobei, Wei Guo Lianghua, Xiu Ying Tangbo
Jun-Ho Sang Baekwon, Kenji Haruto Morizane, Yuki Aoi Hoshimura
Thanh Van Dinhloc, Siti Rahma Wibisanto, Somchai Prasert Bunyawong
"""
# Words in capitals that begin a sentence, and no name.
STARTS = set(
    "A An And As At But For From He Her His How I In It Its Many Of On One Or Other Others She Some Such The Their "
    "These They This Those To What When Where Which While Who Yes You".split()
)
# A shorter part of a name may be a word of its own.
SHORTEST_PART = 3


def control_names(name: str) -> list[str]:
    """
    Invented names that stand in for a name.

    Args:
        name (`str`):
            The name.

    Returns:
        `list[str]`: Names of as many words, up to three, none of which shares a word with the name.
    """
    count, words = len(name.split()), set(name.casefold().split())
    fitting = {1: slice(0, 1), 2: slice(0, 3, 2)}.get(count, slice(0, 3))
    pool = [full_name.split() for full_name in re.split(r"[,\n]", INVENTED.strip())]
    return [" ".join(parts[fitting]) for parts in pool if not words & {part.casefold() for part in parts}]


def mentions(text: str, name: str) -> bool:
    """Whether a text has the whole name in it, in any letter case."""
    return re.search(_whole(name), text) is not None


def replace_name(text: str, name: str, other: str) -> str:
    """
    Put another name in the place of a name.

    Args:
        text (`str`):
            The text.
        name (`str`):
            The name. Its first, last and middle words are replaced too where they stand without the others.
        other (`str`):
            The name that takes its place.

    Returns:
        `str`: The text about the other person.
    """
    words, others = name.split(), other.split() or [""]
    parts: dict[str, str] = {}
    for index, word in enumerate(words if len(words) > 1 else []):
        # Particles such as "de" and "van" stand in other names too.
        if len(word) >= SHORTEST_PART and not word.islower():
            place = {0: 0, len(words) - 1: -1}.get(index, len(others) // 2)
            parts.setdefault(word, others[place])
    pattern = "|".join([_whole(name), *(rf"(?<!\w){re.escape(part)}(?!\w)" for part in parts)])
    return re.sub(pattern, lambda match: parts.get(match[0], other), text)


def refers(text: str, name: str) -> bool:
    """Whether a text has the name or a part of it, as a word, in it."""
    return replace_name(text, name, "\0") != text


@lru_cache
def _whole(name: str) -> str:
    """A pattern of the whole name. Scripts without letter case do not put spaces around it."""
    pattern = r"\s+".join(map(re.escape, name.split()))
    return rf"(?i:(?<!\w){pattern}(?!\w))" if name.lower() != name.upper() else pattern


def read_names(texts: Sequence[str], name: str) -> list[str]:
    """
    Find the names of people in what a model said when it was asked for people like one.

    Args:
        texts (`Sequence[str]`):
            The answers.
        name (`str`):
            The person that the answers are about. Names that share a word with it are left out.

    Returns:
        `list[str]`: Two to four words in capitals each, in the order in which they come.
    """
    known = set(name.casefold().split())
    found: dict[str, str] = {}
    for text in texts:
        # A list may have a line, a number or a comma per name.
        for piece in re.split(r"[\n,;:()\"“”]|\band\b|\.\s|\d+\.", text):
            for match in re.finditer(r"(?:[^\W\d_a-z][\w'’.-]*\s+){1,3}[^\W\d_a-z][\w'’-]*", piece):
                words = match[0].split()
                while words and words[0] in STARTS:
                    del words[0]
                capitals = all(word[0].isupper() for word in words)
                if len(words) > 1 and capitals and not known & {word.casefold() for word in words}:
                    found.setdefault(" ".join(words).casefold(), " ".join(words))
    return list(found.values())
