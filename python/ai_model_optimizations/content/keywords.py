"""Keywords in a message, as people write them: any case, either Turkish i, with endings.

Both sides are folded as the guards fold them, so "IBAN", "ıban" and "İBAN" are one word. A keyword
is found as a whole word, as an English inflection of it, or with Turkish endings: "kart" is in
"kartımı" and "card" in "cards", but not in "cardiology".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from ..cache.guards.text import fold, stem_forms

_WORD: Final = re.compile(r"\w+")
# Folded endings that can follow one another; a lone vowel only among them.
_TURKISH_ENDINGS: Final = re.compile(
    r"(?:l[ae]r|[iu]m[iu]z|[iu]n[iu]z|[nsy]?[iu]n?|[iu]m|m|n|[ny]?[ae]|[dt][ae]n?|n?d[ae]n?|n[iu]n"
    r"|y?l[ae]|l[iu]|s[iu]z|l[iu]k|m[iu]|c[iu])+"
)
_SHORTEST_STEM: Final = 4
# p, ç, t, k soften before a vowel: hesap, hesabım. Folding has made ç and ğ into c and g.
_SOFTENED: Final = {"p": "b", "t": "d", "k": "g"}


class KeywordTable:
    """Finds the category whose keywords a message contains.

    Parameters
    ----------
    keywords : of each category; among equal matches the earlier category wins
    """

    def __init__(self, keywords: Mapping[str, Iterable[str]]) -> None:
        self._phrases: list[tuple[str, tuple[str, ...]]] = []
        # First letters of a phrase's first word: one look-up skips most phrases.
        self._by_start: dict[str, list[int]] = {}
        for category, listed in keywords.items():
            for keyword in listed:
                words = tuple(_WORD.findall(fold(keyword)))
                if words:
                    self._by_start.setdefault(words[0][:3], []).append(len(self._phrases))
                    self._phrases.append((category, words))

    def match(self, message: str) -> str | None:
        """Return the category whose keywords make up most of the message; None if none match."""
        words = _WORD.findall(fold(message))
        found: dict[int, int] = {}
        for at, word in enumerate(words):
            for number in self._by_start.get(word[:3], ()):
                phrase = self._phrases[number][1]
                if number not in found and _stands_at(phrase, words, at):
                    found[number] = sum(map(len, phrase))
        if not found:
            return None
        letters: dict[str, int] = {}
        for number in sorted(found):
            category = self._phrases[number][0]
            letters[category] = letters.get(category, 0) + found[number]
        return max(letters, key=letters.__getitem__)


def _stands_at(phrase: tuple[str, ...], words: list[str], at: int) -> bool:
    if at + len(phrase) > len(words):
        return False
    return all(_is_form_of(words[at + i], keyword) for i, keyword in enumerate(phrase))


def _is_form_of(word: str, keyword: str) -> bool:
    if word == keyword:
        return True
    if keyword in stem_forms(word):
        return True
    if len(keyword) < _SHORTEST_STEM or len(word) <= len(keyword):
        return False
    stem, ending = word[: len(keyword)], word[len(keyword) :]
    softened = keyword[:-1] + _SOFTENED.get(keyword[-1], keyword[-1])
    return stem in (keyword, softened) and _TURKISH_ENDINGS.fullmatch(ending) is not None
