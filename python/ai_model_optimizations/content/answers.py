"""Answers, which of them may be cached, and the caches that hold them."""

from __future__ import annotations

import math
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._environment import disabled
from ..cache import Agreement, SmartCache
from ..cache.contexts import Context, ContextKey, context_key
from ..cache.guards import GuardSpec

#: (response, source), as `find_response` returns it.
Answer = tuple[str, str]
#: Called with message, response and source: whether similar messages may get the same answer.
Shareable = Callable[[str, str, str], bool]

# A source that contains one of these says that nothing matched; the answer may repeat the message.
_UNMATCHED: Final = (
    "default", "no_match", "nomatch", "no match", "not_found", "not found", "unmatched", "unknown",
    "fallback", "error", "none", "empty",
)  # fmt: skip
_SHORTEST_ECHO: Final = 3
_ENTRY_BYTES: Final = 500  # the dictionaries' entries, key, tuples and string headers, about
# An answer found by meaning is looked up again when the cache has grown by this factor.
_GROWN: Final = 1.25


_SAME: Final[Any] = object()


class Found(NamedTuple):
    """An answer of a plain manager, and whether others may get it too.

    `raw` is what the manager returned if that is not (response, source): it is passed on as it is
    and never cached. `trouble` is the error of deciding whether others may get the answer.
    """

    response: str
    source: str
    keep: Literal["no", "exact", "all"]
    raw: Any = _SAME
    trouble: Exception | None = None

    @property
    def answer(self) -> Any:
        """The answer for the user."""
        return (self.response, self.source) if self.raw is _SAME else self.raw


def is_for_all(message: str, response: str, source: str) -> bool:
    """Whether an answer appears not to depend on the user's exact words.

    It does depend on them if its source says that nothing matched, or if it repeats the message.
    """
    lowered = source.lower()
    if not lowered.strip() or any(word in lowered for word in _UNMATCHED):
        return False
    words = " ".join(message.split()).casefold()
    if len(words) < _SHORTEST_ECHO:
        return True
    said = " ".join(response.split()).casefold()
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", said) is None


class _Row(NamedTuple):
    answer: tuple[Any, str]
    expires: float
    entry: int
    until: float


class ExactAnswers:
    """Answers to exactly the same text in the same context; the least recently used leave first.

    Parameters
    ----------
    max_entries, max_bytes : limits
    ttl : seconds that an answer lives; None for no limit
    clock : returns seconds, and never runs backwards
    """

    def __init__(
        self,
        max_entries: int,
        ttl: float | None,
        max_bytes: int = 64 << 20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._names_of: dict[int, set[tuple[ContextKey, str]]] = {}
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._ttl = float("inf") if ttl is None else ttl
        self._clock = clock
        self._lock = threading.Lock()
        self._rows: OrderedDict[tuple[ContextKey, str], _Row] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: ContextKey, message: str, size: int = 0) -> tuple[Any, str] | None:
        """Return the answer to this text; None if there is none, or it is outdated at `size`."""
        with self._lock:
            row = self._rows.get((key, message))
            if row is None:
                return None
            if row.expires <= self._clock() or row.until < size:
                self._drop((key, message))
                return None
            self._rows.move_to_end((key, message))
            return row.answer

    def put(
        self,
        key: ContextKey,
        message: str,
        answer: tuple[Any, str],
        age: float = 0.0,
        *,
        entry: int = 0,
        until: float = math.inf,
    ) -> None:
        """Keep an answer.

        Parameters
        ----------
        answer : str or bytes, and where it came from
        age : seconds since it was computed
        entry : the entry of the semantic cache that it came from; see `drop_entry`
        until : the largest `size` at which `get` returns it
        """
        with self._lock:
            if (key, message) in self._rows:
                self._drop((key, message))
            expires = self._clock() + self._ttl - age
            self._rows[key, message] = _Row(answer, expires, entry, until)
            if entry:
                self._names_of.setdefault(entry, set()).add((key, message))
            self.bytes += _row_bytes(message, answer)
            while len(self._rows) > self._max_entries or self.bytes > self._max_bytes:
                self._drop(next(iter(self._rows)))

    def drop_entry(self, entry: int) -> None:
        """Forget every answer that came from an entry of the semantic cache."""
        with self._lock:
            for name in tuple(self._names_of.get(entry, ())):
                self._drop(name)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._rows.clear()
            self._names_of.clear()
            self.bytes = 0

    def _drop(self, name: tuple[ContextKey, str]) -> None:
        row = self._rows.pop(name)
        self.bytes -= _row_bytes(name[1], row.answer)
        if row.entry:
            names = self._names_of[row.entry]
            names.remove(name)
            if not names:
                del self._names_of[row.entry]


def _row_bytes(message: str, answer: tuple[Any, str]) -> int:
    letters = (message, *answer)
    return sum(len(text) * (1 if text.isascii() else 4) for text in letters) + _ENTRY_BYTES


class _AnswersByMeaning(SmartCache):
    """A cache whose invalidated entries are also removed from the cache of exact texts."""

    def __init__(self, exact: ExactAnswers, **options: Any) -> None:
        self._exact = exact
        super().__init__(**options)

    def _on_removed(self, slot: int, reason: str) -> None:
        super()._on_removed(slot, reason)
        if reason == "invalidated":
            self._exact.drop_entry(self._table.entry_id(slot))

    def holds(self, entry: int) -> bool:
        """Whether an entry is still there."""
        return self._table.slot_of_entry(entry) is not None


class AnswerCaches:
    """The exact and the semantic cache of one content, for all managers that serve it.

    An answer whose computation began before a `clear` is not stored after it: `clear` starts a new
    generation, and `store` is given the generation in which the answer was computed.
    """

    def __init__(
        self,
        *,
        threshold: float,
        ttl: float | None,
        max_entries: int,
        guard: GuardSpec,
        agreement: Agreement | None,
        mode: Literal["serve", "shadow"],
    ) -> None:
        self.exact = ExactAnswers(max_entries, ttl)
        self.semantic = _AnswersByMeaning(
            self.exact,
            capacity=max_entries,
            threshold=threshold,
            ttl=ttl,
            guard=guard,
            agreement=agreement,
            mode=mode,
        )
        self.generation = 0
        self.enabled = not disabled("cache")
        self._stored = 0  # entries of the semantic cache since it was empty, about
        self._exact_on = self.enabled and mode == "serve"

    def find_exact(self, message: str, context: Context) -> Answer | None:
        """Return the answer that this text got in this context."""
        if not self._exact_on:
            return None
        return self.exact.get(context_key(context), message, self._stored)

    def find_similar(
        self, message: str, context: Context, vector: NDArray[np.float32], generation: int
    ) -> tuple[Answer, bool] | None:
        """Return an answer by meaning, and whether the text was the same after all.

        The text is remembered with the answer, for as long as the answer itself lives, but only
        until the cache has grown: a newer entry may then be nearer.
        """
        stored = self._stored
        hit = self.semantic.get_semantic_similar(vector, None, context, message)
        if hit is None:
            return None
        answer = (hit.value, hit.source or "")
        if self._exact_on and generation == self.generation:
            self.exact.put(
                context_key(context),
                message,
                answer,
                hit.age,
                entry=hit.entry,
                until=math.inf if hit.exact else stored * _GROWN,
            )
            self._settle(hit.entry, generation)
        return answer, hit.exact

    def store(
        self,
        message: str,
        context: Context,
        found: Found,
        vector: NDArray[np.float32] | None,
        generation: int,
        seconds: float,
    ) -> None:
        """Store an answer in the caches that may hold it."""
        if generation != self.generation or found.keep == "no":
            return
        entry = 0
        if found.keep == "all" and vector is not None:
            entry = self.semantic.put(
                vector,
                found.response,
                query=message,
                context=context,
                source=found.source,
                cost=seconds,
            )
            self._stored += 1
        if self._exact_on:
            self.exact.put(context_key(context), message, found.answer, entry=entry)
        self._settle(entry, generation)

    def _settle(self, entry: int, generation: int) -> None:
        """Remove a stored answer again if it was cleared or invalidated meanwhile."""
        if generation != self.generation:
            self._forget()
        elif entry and not self.semantic.holds(entry):
            self.exact.drop_entry(entry)

    def clear(self) -> None:
        """Forget every answer, including those still being computed."""
        self.generation += 1
        self._forget()

    def _forget(self) -> None:
        self.exact.clear()
        self.semantic.clear()
        self._stored = 0
