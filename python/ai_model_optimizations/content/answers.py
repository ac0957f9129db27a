"""Answers, what may be kept of them, and the caches that keep them."""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._environment import disabled
from ..cache import SmartCache
from ..cache.contexts import Context, ContextKey, context_key
from ..cache.guards import GuardSpec

#: (response, source), as `find_response` returns it.
Answer = tuple[str, str]
#: Called with message, response and source: whether the answer suits others who mean the same.
Shareable = Callable[[str, str, str], bool]

# A source that contains one of these says that nothing matched: the answer may repeat the words.
_UNMATCHED: Final = (
    "default", "no_match", "nomatch", "no match", "not_found", "not found", "unmatched", "unknown",
    "fallback", "error", "none", "empty",
)  # fmt: skip
_SHORTEST_ECHO: Final = 3
_ENTRY_BYTES: Final = 400  # the dictionary's entry, key, tuples and string headers, about


_SAME: Final[Any] = object()


class Found(NamedTuple):
    """An answer of a plain manager and who may get it again.

    `raw` is what the manager returned where that is not (response, source): it is given on as it
    is and never kept.
    """

    response: str
    source: str
    keep: Literal["no", "exact", "all"]
    raw: Any = _SAME

    @property
    def answer(self) -> Any:
        """What the user gets."""
        return (self.response, self.source) if self.raw is _SAME else self.raw


def is_for_all(message: str, response: str, source: str) -> bool:
    """Whether an answer looks as if it did not depend on the user's very words.

    It does when its source says that nothing matched, or when it repeats the message.
    """
    lowered = source.lower()
    if not lowered.strip() or any(word in lowered for word in _UNMATCHED):
        return False
    words = " ".join(message.split()).casefold()
    if len(words) < _SHORTEST_ECHO:
        return True
    said = " ".join(response.split()).casefold()
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", said) is None


class ExactAnswers:
    """Answers to the very same text in the same context; the longest unused leave first.

    Parameters
    ----------
    max_entries, max_bytes : bounds
    ttl : seconds that an answer lives; None for ever
    clock : seconds that never run back
    """

    def __init__(
        self,
        max_entries: int,
        ttl: float | None,
        max_bytes: int = 64 << 20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._ttl = float("inf") if ttl is None else ttl
        self._clock = clock
        self._lock = threading.Lock()
        self._rows: OrderedDict[tuple[ContextKey, str], tuple[tuple[Any, str], float]] = (
            OrderedDict()
        )
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: ContextKey, message: str) -> tuple[Any, str] | None:
        """The answer to this text, None when it is not there any more."""
        with self._lock:
            row = self._rows.get((key, message))
            if row is None:
                return None
            if row[1] <= self._clock():
                self._drop((key, message))
                return None
            self._rows.move_to_end((key, message))
            return row[0]

    def put(
        self, key: ContextKey, message: str, answer: tuple[Any, str], age: float = 0.0
    ) -> None:
        """Keep an answer (str or bytes, and where it came from) that is `age` seconds old."""
        with self._lock:
            if (key, message) in self._rows:
                self._drop((key, message))
            self._rows[key, message] = (answer, self._clock() + self._ttl - age)
            self.bytes += _row_bytes(message, answer)
            while len(self._rows) > self._max_entries or self.bytes > self._max_bytes:
                self._drop(next(iter(self._rows)))

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._rows.clear()
            self.bytes = 0

    def _drop(self, name: tuple[ContextKey, str]) -> None:
        answer, _ = self._rows.pop(name)
        self.bytes -= _row_bytes(name[1], answer)


def _row_bytes(message: str, answer: tuple[Any, str]) -> int:
    letters = (message, *answer)
    return sum(len(text) * (1 if text.isascii() else 4) for text in letters) + _ENTRY_BYTES


class AnswerCaches:
    """The exact and the semantic cache of one content, for all managers that serve it.

    An answer that was computed before a `clear` and comes after it is not stored: `clear` makes a
    new generation, and `store` is told of which one the answer is.
    """

    def __init__(
        self,
        *,
        threshold: float,
        ttl: float | None,
        max_entries: int,
        guard: GuardSpec,
        mode: Literal["serve", "shadow"],
    ) -> None:
        self.exact = ExactAnswers(max_entries, ttl)
        self.semantic = SmartCache(
            capacity=max_entries, threshold=threshold, ttl=ttl, guard=guard, mode=mode
        )
        self.generation = 0
        self.enabled = not disabled("cache")
        self._exact_on = self.enabled and mode == "serve"

    def find_exact(self, message: str, context: Context) -> Answer | None:
        """The answer that this text got in this context."""
        return self.exact.get(context_key(context), message) if self._exact_on else None

    def find_similar(
        self, message: str, context: Context, vector: NDArray[np.float32], generation: int
    ) -> tuple[Answer, bool] | None:
        """An answer by meaning and whether the text was the same after all.

        The text is remembered with it, for as long as the answer itself would live.
        """
        hit = self.semantic.get_semantic_similar(vector, None, context, message)
        if hit is None:
            return None
        answer = (hit.value, hit.source or "")
        if self._exact_on and generation == self.generation:
            self.exact.put(context_key(context), message, answer, hit.age)
            if generation != self.generation:
                self._forget()
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
        """Keep an answer where it may be kept."""
        if generation != self.generation or found.keep == "no":
            return
        if self._exact_on:
            self.exact.put(context_key(context), message, found.answer)
        if found.keep == "all" and vector is not None:
            self.semantic.put(
                vector,
                found.response,
                query=message,
                context=context,
                source=found.source,
                cost=seconds,
            )
        if generation != self.generation:  # cleared meanwhile: what was just stored is old
            self._forget()

    def clear(self) -> None:
        """Forget every answer, and those under way too."""
        self.generation += 1
        self._forget()

    def _forget(self) -> None:
        self.exact.clear()
        self.semantic.clear()
