"""Language tables made ready for looking up."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from .quantities import QuantityReader
from .tables import LanguageTables

#: One side of a pair of opposites: which table, which pair, which side.
Side = tuple[int, int, int]


class _Table:
    """One language's tables with their indexes."""

    def __init__(self, number: int, table: LanguageTables) -> None:
        self.table = table
        self._negation = re.compile(table.negation_pattern)
        self._sides: dict[str, list[Side]] = {}
        for i, pair in enumerate(table.antonyms):
            for side, word in enumerate(pair):
                self._sides.setdefault(word, []).append((number, i, side))
        self._longest = max(map(len, self._sides), default=0)
        self._exclusive: dict[str, list[tuple[str, int]]] = {}
        for reason, sets in table.exclusive.items():
            for i, members in enumerate(sets):
                for word in members:
                    self._exclusive.setdefault(word, []).append((reason, i))
        self._named = {word: reason for reason, names in table.named.items() for word in names}
        self._stem: Callable[[str], str | None] = table.stemmer(
            {*table.aliases, *self._exclusive, *self._named}
        )

    def negates(self, word: str) -> bool:
        return word in self.table.negations or (
            word not in self.table.not_negations and self._negation.fullmatch(word) is not None
        )

    def sides(self, words: Iterable[str], forms: Iterable[str]) -> set[Side]:
        if not self.table.prefixed:
            return {side for form in forms for side in self._sides.get(form, ())}
        beginnings = {
            word[:length]
            for word in words
            for length in range(3, min(len(word), self._longest) + 1)
        }
        return {side for word in beginnings for side in self._sides.get(word, ())}

    def _canonical(self, word: str) -> str | None:
        stem = self._stem(word)
        return None if stem is None else self.table.aliases.get(stem, stem)

    def exclusive(self, words: Iterable[str]) -> set[tuple[str, int, str]]:
        names = filter(None, map(self._canonical, words))
        return {(*group, name) for name in names for group in self._exclusive.get(name, ())}

    def named(self, words: Iterable[str]) -> set[tuple[str, str]]:
        found = set()
        for word in words:
            stem = self._stem(word)
            if stem is not None:
                name = self.table.aliases.get(stem, stem)
                reason = self._named.get(name) or self._named.get(stem)
                if reason:
                    found.add((reason, name))
        return found


class Lexicon:
    """The languages that a text may be in.

    Parameters
    ----------
    tables : all known languages, the international one first: its names and units hold everywhere
    used : which of them a text is in
    """

    def __init__(self, tables: Sequence[LanguageTables], used: Sequence[int]) -> None:
        ready = {i: _Table(i, tables[i]) for i in {0, *used}}
        self._tables = [ready[i] for i in used]
        self._naming = list(ready.values())
        self.decimal_comma = 0 not in used
        self.quantities = QuantityReader(
            [tables[i] for i in used], [table.table for table in self._naming]
        )

    def negated(self, words: Sequence[str]) -> bool:
        """Whether any word turns the statement round."""
        return any(table.negates(word) for table in self._tables for word in words)

    def sides(self, words: Sequence[str], forms: Iterable[str]) -> frozenset[Side]:
        """The sides of pairs of opposites that are named."""
        return frozenset().union(*(table.sides(words, forms) for table in self._tables))

    def exclusive(self, words: Sequence[str]) -> frozenset[tuple[str, int, str]]:
        """Members of exclusive sets that are named, as (reason, set, member)."""
        return frozenset().union(*(table.exclusive(words) for table in self._tables))

    def named(self, words: Sequence[str]) -> frozenset[tuple[str, str]]:
        """Known names, as (reason, name)."""
        return frozenset().union(*(table.named(words) for table in self._naming))
