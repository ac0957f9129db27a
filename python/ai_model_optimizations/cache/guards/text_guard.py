"""The guard that every cache has by default: it compares what two questions say, word by word.

An embedding puts "open the account" beside "close the account" and "5 km" beside "5 miles": what
turns an answer round is often one short word. Such words can be listed, and this guard does. It
only ever refuses; a refused hit costs one computation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from .lexicon import Lexicon, Side
from .quantities import Quantities
from .tables import LanguageTables
from .text import Word, fold, stem_forms, words

_PARTICLE = re.compile(
    r"\b(?:turn|switch|power|log|sign|check|opt|clock|move|cash|plug|put|go|going|zoom|scroll)"
    r"(?:s|ed|ing|ned|ning|ted|ting|ged|ging|ping)?\b(?:\s+[\w']+){0,4}?\s+(on|off|in|out|up|down)\b"
)
_OPPOSITE_PARTICLE = {
    "on": "off",
    "off": "on",
    "in": "out",
    "out": "in",
    "up": "down",
    "down": "up",
}
_NEGATING_PREFIXES = ("un", "in", "im", "ir", "il", "dis", "non", "de", "mis")
_MEANT_ANYWAY = frozenset(("today", "yesterday", "bugun", "dun"))
_ARTICLES = r"(?:(?:my|the|a|an|your)\s+)?"
_FROM = re.compile(rf"\bfrom\s+{_ARTICLES}(\w+)")
_TO = re.compile(rf"\b(?:to|into)\s+{_ARTICLES}(\w+)")
_FROM_SUFFIX = re.compile(r"(\w{3,}?)'?[dt][ae]n")
_TO_SUFFIX = re.compile(r"(\w{3,}?)'?[yn]?[ae]")
_DIRECTIONAL = frozenset(("from", "to", "than", "into", "over", "before", "after", "versus", "vs"))
_QUOTED = re.compile('["\u201c\u201d\u00ab\u00bb](.+?)["\u201c\u201d\u00ab\u00bb]')
_PERCENT_WORD = re.compile(r"\byuzde\s*(?=\d)")
_IDENTIFIER = re.compile(r"(?=.*\d)(?=.*[a-z])[a-z0-9][\w.-]+")
_QUANTITY = re.compile(r"-?[\d.,]+(?:[a-z]{1,3}|'[a-z]+)?")
_SHORT_NAMES = {"US": "usa", "U.S": "usa", "UK": "uk", "U.K": "uk", "EU": "europe"}
_PLURAL_OF_CAPITALS = re.compile(r"[A-Z]{2,}s(?:'|$)")
_COMPOUND_NAME = re.compile(
    r"\b(new york|los angeles|san francisco|san diego|las vegas|hong kong|salt lake city"
    r"|united states|united kingdom)\b",
    re.IGNORECASE,
)
_COMPOUND_ALIASES = {"united states": "US", "united kingdom": "UK"}


@dataclass(frozen=True, slots=True)
class _Features:
    """What is compared of one text."""

    quantities: Quantities
    words: tuple[str, ...]
    negated: bool
    sides: frozenset[Side]
    exclusive: frozenset[tuple[str, int, str]]
    named: frozenset[tuple[str, str]]
    entities: frozenset[str]
    particles: frozenset[str]
    origins: frozenset[str]
    destinations: frozenset[str]


class TextGuard:
    """Refuses a candidate whose question differs in a number, unit, date, negation or name.

    Parameters
    ----------
    tables : the languages to know, the international one first: its names and units are looked for
        in every text. See `LanguageTables.extended` for adding words.

    The reasons are "number", "unit", "date", "negation", "antonym", "direction", "entity" and the
    names under which the tables hold exclusive and named words: "currency", "question", "person".
    """

    def __init__(self, tables: Sequence[LanguageTables]) -> None:
        if not tables:
            raise ValueError("tables must name at least one language")
        self._tables = tuple(tables)
        self._lexicon = lru_cache(maxsize=None)(self._make_lexicon)
        # A popular question is compared again and again.
        self._features = lru_cache(maxsize=8192)(self._read)

    def __call__(self, query: str, candidate: str) -> str | None:
        """Return why the candidate's answer must not serve the query, or None."""
        a, b = self._features(query), self._features(candidate)
        if a.words == b.words and a.quantities == b.quantities and a.entities == b.entities:
            return None
        return (
            a.quantities.difference(b.quantities)
            or ("negation" if a.negated != b.negated and _alike(a, b) else None)
            or _named_differ(a, b)
            or ("antonym" if _opposite(a, b) else None)
            or _exclusive_differ(a, b)
            or ("direction" if _turned_round(a, b) else None)
            or ("entity" if _entities_differ(a, b) else None)
        )

    def _make_lexicon(self, used: tuple[int, ...]) -> Lexicon:
        return Lexicon(self._tables, used)

    def _languages(self, text: str, tokens: Sequence[str]) -> tuple[int, ...]:
        """The languages with most of their marks in the text; all when there are none."""
        marks = [
            sum(token in table.markers for token in tokens)
            + sum(text.count(letter) for letter in table.letters)
            for table in self._tables
        ]
        return tuple(i for i, count in enumerate(marks) if count == max(marks))

    def _read(self, text: str) -> _Features:
        text = _COMPOUND_NAME.sub(_one_word, text)
        written = words(text)
        tokens = [word.folded for word in written]
        lexicon = self._lexicon(self._languages(text, tokens))
        folded = _PERCENT_WORD.sub("%", fold(text))
        quantities, rest = lexicon.quantities.read(folded, lexicon.decimal_comma)
        kept = re.findall(r"\w+(?:['.-]\w+)*", rest)
        split = [part for token in kept for part in {token, *re.split(r"['-]", token)} if part]
        forms = frozenset().union(*map(stem_forms, split))
        short = {("entity", _SHORT_NAMES[w.written]) for w in written if w.written in _SHORT_NAMES}
        return _Features(
            quantities=quantities,
            words=tuple(kept),
            negated=lexicon.negated(kept),
            sides=lexicon.sides(kept, forms),
            exclusive=lexicon.exclusive(split),
            named=lexicon.named(split) | short,
            entities=_entities(text, written),
            particles=frozenset(_PARTICLE.findall(folded)),
            origins=frozenset(_FROM.findall(rest)) | _stems(_FROM_SUFFIX, kept),
            destinations=frozenset(_TO.findall(rest)) | _stems(_TO_SUFFIX, kept),
        )


def _one_word(name: re.Match[str]) -> str:
    return _COMPOUND_ALIASES.get(name[0].lower()) or name[0].replace(" ", "")


def _stems(suffix: re.Pattern[str], tokens: Sequence[str]) -> frozenset[str]:
    """What is left of the words that have a suffix."""
    return frozenset(match[1] for token in tokens if (match := suffix.fullmatch(token)))


def _entities(text: str, written: Sequence[Word]) -> frozenset[str]:
    """Words that look like names by how they are written: inner capitals, codes, quotations."""
    found = {" ".join(w.folded for w in words(quoted)) for quoted in _QUOTED.findall(text)}
    found.discard("")
    for word in written:
        if _IDENTIFIER.fullmatch(word.folded) and not _QUANTITY.fullmatch(word.folded):
            found.add(word.folded)
    starts = {match.end() for match in re.finditer(r"(?:^|[.!?:]\s+|\n)\W*", text)}
    capitals, position = [], 0
    for word in written:
        position = text.find(word.written, position)
        if position < 0:  # normalisation changed the text; capitals tell nothing then
            return frozenset(found)
        if word.written[0].isupper() and position not in starts:
            capitals.append(word)
        position += len(word.written)
    # In a title or a shouted sentence capitals mark no names.
    if len(capitals) * 2 <= len(written):
        found.update({_singular(word) for word in capitals} - {"i"})
    # Names that are also words are compared under another name.
    found.difference_update(name.lower() for name in _SHORT_NAMES)
    return frozenset(found)


def _singular(name: Word) -> str:
    """A name without what hangs on it: "ATMs", "ATM's" and "ATM'de" are of one ATM."""
    stem = name.folded.partition("'")[0]
    return stem[:-1] if _PLURAL_OF_CAPITALS.match(name.written) else stem


def _alike(a: _Features, b: _Features) -> bool:
    """Whether the texts share most of their words.

    "It has not gone through" and "it failed" say the same in other words; it is among the same
    words that a "not" turns the meaning round.
    """
    mine, theirs = set(a.words), set(b.words)
    return 2 * len(mine & theirs) >= min(len(mine), len(theirs))


def _named_differ(a: _Features, b: _Features) -> str | None:
    differing = a.named ^ b.named
    if not a.named or not b.named:
        # In a story, or as what is meant anyway, these say nothing; against "tomorrow" they do.
        differing = frozenset(name for name in differing if name[1] not in _MEANT_ANYWAY)
    return min((reason for reason, _ in differing), default=None)


def _entities_differ(a: _Features, b: _Features) -> bool:
    """Whether one names something of which the other has no word."""
    for mine, other in ((a, b), (b, a)):
        text = " ".join(other.words)
        for entity in mine.entities - other.entities:
            if entity not in text:
                return True
    return False


def _opposite(a: _Features, b: _Features) -> bool:
    for table, pair, side in a.sides:
        other = (table, pair, 1 - side)
        if other in b.sides and other not in a.sides and (table, pair, side) not in b.sides:
            return True
    for particle in a.particles - b.particles:
        if _OPPOSITE_PARTICLE[particle] in b.particles - a.particles:
            return True
    return _prefix_negates(a.words, b.words) or _prefix_negates(b.words, a.words)


def _prefix_negates(plain: Sequence[str], prefixed: Sequence[str]) -> bool:
    """Whether one text has "locked" where the other has "unlocked"; or Turkish "-li" and "-siz"."""
    mine, theirs = set(plain), set(prefixed)
    mine, theirs = mine - theirs, theirs - mine
    return any(not mine.isdisjoint(_plain_forms(word)) for word in theirs)


@lru_cache(maxsize=8192)
def _plain_forms(word: str) -> tuple[str, ...]:
    """The words of four letters and more that `word` is the negation of, by how it is built."""
    found = []
    if word.startswith(_NEGATING_PREFIXES):
        found += [word[len(p) :] for p in _NEGATING_PREFIXES if word.startswith(p)]
    if word.endswith(("siz", "suz")):
        stem = word[:-3]
        found += [stem + "li", stem + "lu"]
        if not stem.endswith(("li", "lu")):
            found.append(stem)
    if word.endswith("less"):
        found.append(word[:-4] + "ful")
    return tuple(form for form in found if len(form) >= 4)


def _exclusive_differ(a: _Features, b: _Features) -> str | None:
    for reason, group in sorted({(reason, group) for reason, group, _ in a.exclusive}):
        mine = {name for r, g, name in a.exclusive if (r, g) == (reason, group)}
        theirs = {name for r, g, name in b.exclusive if (r, g) == (reason, group)}
        if theirs and not mine & theirs:
            return reason
    return None


def _turned_round(a: _Features, b: _Features) -> bool:
    """Whether origin and destination changed places, or the same words stand in another order."""
    if a.origins & b.destinations - b.origins and a.destinations & b.origins - a.origins:
        return True
    return (
        sorted(a.words) == sorted(b.words)
        and a.words != b.words
        and not _DIRECTIONAL.isdisjoint(a.words)
    )
