"""The words a guard knows of a language; plain data, to be extended by the user."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from .text import fold


def _folded(names: Iterable[str]) -> frozenset[str]:
    return frozenset(fold(name) for name in names)


@dataclass(frozen=True)
class LanguageTables:
    """What `TextGuard` looks up. Words may be written with marks and capitals.

    Attributes
    ----------
    markers : common words by which a text is taken to be of this language
    letters : letters that only this language (of those in use) has
    negations : words that turn a statement round
    negation_pattern : matches the folded form of other words that do, such as verb endings
    not_negations : folded words that match the pattern but are none
    antonyms : pairs; a question with one word and a candidate with the other are opposites
    prefixed : whether the words of `antonyms` are beginnings of words, as suits a language that
        inflects by suffixes
    exclusive : by reason, sets of which a question and a candidate must not name different members
        if both name any
    named : by reason, words that both must name or neither: the others are more specific
    aliases : other names of members of `exclusive` and `named`
    units : word to (dimension, factor); quantities are equal when dimension and product are
    numbers : number words
    scales : number words that multiply what is before them
    ordinals : words for first, second...
    suffixes : matches what may follow a unit or a name
    """

    markers: frozenset[str] = frozenset()
    letters: str = ""
    negations: frozenset[str] = frozenset()
    negation_pattern: str = "(?!)"
    not_negations: frozenset[str] = frozenset()
    antonyms: tuple[tuple[str, str], ...] = ()
    prefixed: bool = False
    exclusive: Mapping[str, tuple[frozenset[str], ...]] = field(default_factory=dict)
    named: Mapping[str, frozenset[str]] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    units: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)
    ordinals: Mapping[str, float] = field(default_factory=dict)
    suffixes: str = "(?!)"

    def extended(
        self,
        *,
        negations: Iterable[str] = (),
        antonyms: Iterable[tuple[str, str]] = (),
        exclusive: Mapping[str, Iterable[Iterable[str]]] | None = None,
        named: Mapping[str, Iterable[str]] | None = None,
        aliases: Mapping[str, str] | None = None,
        units: Mapping[str, tuple[str, float]] | None = None,
    ) -> LanguageTables:
        """A copy that knows more words."""
        all_exclusive = dict(self.exclusive)
        for reason, sets in (exclusive or {}).items():
            all_exclusive[reason] = all_exclusive.get(reason, ()) + tuple(map(_folded, sets))
        all_named = dict(self.named)
        for reason, names in (named or {}).items():
            all_named[reason] = all_named.get(reason, frozenset()) | _folded(names)
        return replace(
            self,
            negations=self.negations | _folded(negations),
            antonyms=(*self.antonyms, *((fold(a), fold(b)) for a, b in antonyms)),
            exclusive=all_exclusive,
            named=all_named,
            aliases={**self.aliases, **{fold(k): fold(v) for k, v in (aliases or {}).items()}},
            units={**self.units, **{fold(k): v for k, v in (units or {}).items()}},
        )

    def stemmer(self, known: Iterable[str]) -> Callable[[str], str | None]:
        """A function from a folded word to the member of `known` that it is a form of."""
        exact = frozenset(known)
        ending = re.compile(self.suffixes)
        longest = max(map(len, exact), default=0)

        def stem(word: str) -> str | None:
            if word in exact:
                return word
            for length in range(min(len(word) - 1, longest), 2, -1):
                if word[:length] in exact and ending.fullmatch(word, length):
                    return word[:length]
            return None

        return stem
