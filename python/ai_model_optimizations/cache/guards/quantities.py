"""Numbers, amounts with units, dates and times of a question, in comparable form.

"14 days" and "two weeks" are the same quantity, "5 km" and "5 miles" are not. What cannot be read
with certainty keeps a form of its own, so that it equals only itself: a refused hit costs a
computation, a wrong one costs trust.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from .tables import LanguageTables

# What a quantity is, and how much.
Quantity = tuple[str, float | str]

_CURRENCY = "$\u20ac\u00a3\u20ba\u00a5"
_ISO_DATE = re.compile(r"(?<![\w-])(\d{4})-(\d{1,2})-(\d{1,2})(?![\w-])")
_DATE = re.compile(r"(?<![\w./-])(\d{1,2})([./-])(\d{1,2})\2(\d{4}|\d{2})(?![\w/-])")
_TIME = re.compile(r"(?<![\w:.])(\d{1,2})(?::(\d{2}))?(?::\d{2})?\s*([ap])\.?m\b\.?")
_CLOCK = re.compile(r"(?<![\w:.])([01]?\d|2[0-3]):([0-5]\d)(?![\w:])")
_NUMBER = re.compile(
    rf"(?P<sign>(?<![\w)])-)?(?P<prefix>[{_CURRENCY}%])?\s?(?<![\w.])"
    rf"(?P<digits>\d+(?:[.,]\d+)*)(?P<attached>[a-z]+|'[a-z]+)?\s?(?P<suffix>[{_CURRENCY}%\u00b0])?"
)
_GROUPED = re.compile(r"\d{1,3}(?:([.,])\d{3})+")
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
_ORDINAL_ENDINGS = frozenset(("st", "nd", "rd", "th", "'inci", "'nci", "'uncu", "'ncu"))
_MULTIPLIERS = {"k": 1e3, "bn": 1e9, "mn": 1e6}


@dataclass(slots=True)
class Quantities:
    """What was found, by the reason a difference is refused with."""

    numbers: Counter[Quantity] = field(default_factory=Counter)
    dates: Counter[Quantity] = field(default_factory=Counter)
    ordinals: set[float] = field(default_factory=set)

    def difference(self, other: Quantities) -> str | None:
        """Why the two cannot have one answer, or None."""
        if self.dates != other.dates:
            return "date"
        # "Do I need to activate it first?" counts nothing; "the first" and "the third" do.
        if self.ordinals and other.ordinals and self.ordinals != other.ordinals:
            return "number"
        if self.numbers == other.numbers:
            return None
        mine = sorted(str(amount) for _, amount in self.numbers.elements())
        theirs = sorted(str(amount) for _, amount in other.numbers.elements())
        return "unit" if mine == theirs else "number"


def read_number(digits: str, decimal_comma: bool) -> float:
    """The value of digits with separators.

    Three digits after a single separator may be thousands or decimals; the language decides.
    """
    grouped = _GROUPED.fullmatch(digits)
    thousands, decimal = (".", ",") if decimal_comma else (",", ".")
    if grouped and (digits.count(grouped[1]) > 1 or grouped[1] == thousands):
        return float(digits.replace(grouped[1], ""))
    if digits.count(",") + digits.count(".") == 1:
        return float(digits.replace(",", "."))
    plain = digits.replace(thousands, "").replace(decimal, ".")
    # A version such as 3.11.2 is no number; its digits in a row still tell it from others.
    return float(plain) if plain.count(".") <= 1 else float(digits.replace(".", ""))


class QuantityReader:
    """Finds quantities by the tables of the languages that a text may be in."""

    def __init__(self, tables: Sequence[LanguageTables], units: Sequence[LanguageTables]) -> None:
        self._numbers: dict[str, float] = {}
        self._scales: dict[str, float] = {}
        self._ordinals: dict[str, float] = {}
        for table in tables:
            self._numbers.update(table.numbers)
            self._scales.update(table.scales)
            self._ordinals.update(table.ordinals)
        self._units: list[tuple[Mapping[str, tuple[str, float]], Callable[[str], str | None]]] = [
            (table.units, table.stemmer(table.units)) for table in units
        ]

    def read(self, folded: str, decimal_comma: bool) -> tuple[Quantities, str]:
        """Quantities of a folded text, and the text without them."""
        found = Quantities()
        rest = self._read_dates(folded, found)
        rest = self._read_digits(rest, found, decimal_comma)
        return found, self._read_words(rest, found)

    def _unit(self, word: str | None) -> tuple[str, float] | None:
        if word is None:
            return None
        for units, stem in self._units:
            known = stem(word)
            if known is not None:
                return units[known]
        return None

    @staticmethod
    def _read_dates(text: str, found: Quantities) -> str:
        def iso(match: re.Match[str]) -> str:
            year, month, day = map(int, match.groups())
            found.dates[("date", f"{year}-{month}-{day}")] += 1
            return " "

        def numeric(match: re.Match[str]) -> str:
            first, second, year = int(match[1]), int(match[3]), int(match[4])
            year += 2000 if year < 100 else 0
            if first > 12 or (match[2] == "." and second <= 12):
                text = f"{year}-{second}-{first}"
            elif second > 12:
                text = f"{year}-{first}-{second}"
            else:
                # 3/4 is in March or in April; it equals only what is written alike.
                text = f"{year}-{first}?{second}"
            found.dates[("date", text)] += 1
            return " "

        def twelve_hours(match: re.Match[str]) -> str:
            hour = int(match[1]) % 12 + (12 if match[3] == "p" else 0)
            found.dates[("time", float(hour * 60 + int(match[2] or 0)))] += 1
            return " "

        def clock(match: re.Match[str]) -> str:
            found.dates[("time", float(int(match[1]) * 60 + int(match[2])))] += 1
            return " "

        text = _DATE.sub(numeric, _ISO_DATE.sub(iso, text))
        return _CLOCK.sub(clock, _TIME.sub(twelve_hours, text))

    def _read_digits(self, text: str, found: Quantities, decimal_comma: bool) -> str:
        rest, end = [], 0
        for match in _NUMBER.finditer(text):
            if match.start() < end:
                continue
            value = read_number(match["digits"], decimal_comma)
            if match["sign"]:
                value = -value
            attached = match["attached"]
            rest.append(text[end : match.start()])
            end = match.end()
            if attached in _ORDINAL_ENDINGS:
                found.ordinals.add(value)
                continue
            if attached in _MULTIPLIERS:
                value, attached = value * _MULTIPLIERS[attached], None
            following = _WORD.match(text, end + 1 if text[end : end + 1] == " " else end)
            scale = self._scales.get(following[0]) if following and not attached else None
            if following and scale:
                value, end = value * scale, following.end()
                following = _WORD.match(text, end + 1 if text[end : end + 1] == " " else end)
            unit = self._unit(match["prefix"] or match["suffix"] or attached)
            if unit is None and attached is None and following:
                unit = self._unit(following[0])
                end = following.end() if unit else end
            name, factor = unit or (attached or "", 1.0)
            found.numbers[(name, round(value * factor, 9))] += 1
        rest.append(text[end:])
        return " ".join(rest)

    def _read_words(self, text: str, found: Quantities) -> str:
        total, current, reading, start, previous = 0.0, 0.0, False, 0, ""
        rest, kept = [], 0
        # The empty word at the end closes a number that stands there.
        spans = [(m[0], m.start(), m.end()) for m in _WORD.finditer(text.replace("-", " "))]
        for word, begin, end in [*spans, ("", len(text), len(text))]:
            if word in self._numbers or word in self._scales:
                start = start if reading else begin
                reading = True
                current += self._numbers.get(word, 0.0)
                scale = self._scales.get(word)
                if scale is not None:
                    current = (current or 1.0) * scale
                    if scale > 100.0:
                        total, current = total + current, 0.0
            elif word in self._ordinals:
                found.ordinals.add(self._ordinals[word])
            elif reading and word != "and":
                unit = self._unit(word)
                name, factor = unit or ("", 1.0)
                found.numbers[(name, round((total + current) * factor, 9))] += 1
                total, current, reading = 0.0, 0.0, False
                rest.append(text[kept:start])
                kept = end if unit else begin
            elif previous in ("one", "bir") and (unit := self._unit(word)):
                # Elsewhere "one" is a pronoun and "bir" an article.
                found.numbers[unit] += 1
            previous = word
        rest.append(text[kept:])
        return " ".join(rest)
