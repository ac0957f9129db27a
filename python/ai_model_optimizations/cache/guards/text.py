"""Words of a question, folded so that English and Turkish spellings of a word are one."""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

_APOSTROPHES = str.maketrans({"\u2019": "'", "\u2018": "'", "\u02bc": "'", "\u00b4": "'"})
_WORD = re.compile(r"\w+(?:['.-]\w+)*")


class Word(NamedTuple):
    """A word as it was written and as it is compared."""

    written: str
    folded: str


def fold(text: str) -> str:
    """Lower case without marks, with one letter i.

    Turkish has two letters i, and ``"I".lower()`` picks the wrong one in one of the languages:
    dotted and dotless are folded together, as people who type without Turkish keys do. A pair of
    words that differ only there (few exist) is then not told apart by the tables.
    """
    lowered = text.translate(_APOSTROPHES).replace("\u0130", "i").replace("\u0131", "i").lower()
    decomposed = unicodedata.normalize("NFKD", lowered)
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter))


def words(text: str) -> list[Word]:
    """The words of a text in order; "don't" and "Ankara'da" are one word each."""
    found = _WORD.findall(unicodedata.normalize("NFKC", text).translate(_APOSTROPHES))
    return [Word(written, fold(written)) for written in found]


def stem_forms(folded: str) -> set[str]:
    """An English word and what it may be an inflection of; some forms are no words at all."""
    forms = {folded}
    for suffix, minimum in (("s", 3), ("es", 3), ("ed", 3), ("d", 3), ("ing", 3), ("ly", 4)):
        stem = folded.removesuffix(suffix)
        if stem != folded and len(stem) >= minimum:
            forms.add(stem)
            if suffix in ("ed", "ing"):
                forms.add(stem + "e")
                if len(stem) > 3 and stem[-1] == stem[-2]:
                    forms.add(stem[:-1])
            if suffix in ("es", "ed") and stem.endswith("i"):
                forms.add(stem[:-1] + "y")
    return forms
