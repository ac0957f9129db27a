"""Finds the entry that answers a question: exact text, candidates above the threshold, the guard.

A miss takes no lock. The index is thread-safe by itself, and only when it returns candidates does
the finder lock the table to see whether they are still there. In between, a slot may have been
reused; the entry's serial shows it, and the search is then repeated under the lock. Guards and
decoding run outside the lock, because they are the user's code.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._core import EmbeddingIndex
from .agreement import Agreement
from .contexts import ContextKey
from .entry_table import NO_CONTEXT, EntryTable
from .guards import Guard
from .metrics import Metrics
from .results import CacheHit, Rejection, ShadowHit
from .values import Serializer, StoredValue, UnreadableValueError, decode_value
from .vectors import as_matrix, as_vector

_log = logging.getLogger("ai_model_optimizations")

# How many candidates are examined before giving up on a question whose nearest neighbours are
# refused; the second number is the most that `EmbeddingIndex.find` lists.
_FIRST_CANDIDATES = 4
_ALL_CANDIDATES = 64
#: The reason given when neighbours with another answer refuse a candidate.
DISAGREEMENT = "disagreement"


class _Candidate(NamedTuple):
    """An entry that a search found and that is still in the cache."""

    similarity: float
    entry: int
    query: str | None
    value: StoredValue


class Finder:
    """Looks up answers in a table that other threads change meanwhile.

    Parameters
    ----------
    table, lock : the entries, and the lock that protects everything in the table but the index
    guard : compares question and candidate; None for no guard
    agreement : lets the neighbours decide together; None lets the nearest decide alone
    shadow : record hits as those of shadow mode, which answers nothing
    keep_last : how many rejections and shadow hits are remembered
    """

    def __init__(
        self,
        table: EntryTable,
        lock: threading.Lock,
        clock: Callable[[], float],
        metrics: Metrics,
        guard: Guard | None,
        agreement: Agreement | None,
        serializer: Serializer | None,
        *,
        sliding: bool,
        shadow: bool,
        keep_last: int,
    ) -> None:
        self._table = table
        self._lock = lock
        self._clock = clock
        self._metrics = metrics
        self._guard = guard
        self._agreement = agreement
        self._serializer = serializer
        self._sliding = sliding
        self._shadow = shadow
        self._warning = threading.Lock()  # the first unreadable value takes it and keeps it
        self.rejections: deque[Rejection] = deque(maxlen=keep_last)
        self.shadow_hits: deque[ShadowHit] = deque(maxlen=keep_last)

    def find_text(
        self, text_key: str, text: str | None, key: ContextKey, start: int
    ) -> CacheHit | None:
        """Return the entry of the same text in the same context; if none, no miss is counted."""
        if not text_key:
            return None
        with self._lock:
            now = self._clock()
            slot = self._table.slot_of_text(key, text_key)
            if slot is None:
                return None
            if self._table.expires[slot] <= now:
                self._table.remove(slot, "expired")
                return None
            stored, hit, cost = self._take(slot, 1.0, 1.0, now, guarded=True, exact=True)
        return self._answer(stored, hit, cost, text, key, start)

    def search(
        self,
        vector: NDArray[np.float32],
        key: ContextKey,
        limit: float,
        query: str | None,
        start: int,
    ) -> CacheHit | None:
        """Return the best entry of a context at or above `limit`, or the best supported one.

        Parameters
        ----------
        vector : of the question; the index checks it
        query : the question's text, if known, for the guard
        start : when the lookup began, in nanoseconds
        """
        table = self._table
        serial, index = table.last_serial, table.index
        if index is None:
            as_vector(vector, None)
            return self.miss(start, key)
        reach, wanted = self._scope(limit)
        name = table.context_ids.get(key, NO_CONTEXT)
        if wanted <= _ALL_CANDIDATES:
            found = index.find(vector, name, reach, wanted)
        else:
            found = _find_more(index, vector, name, reach, wanted)
        if not found:
            self._metrics.miss(time.perf_counter_ns() - start, key)
            return None
        return self._choose(found, serial, vector, key, limit, query, start)

    def search_many(
        self,
        vectors: NDArray[np.float32],
        key: ContextKey,
        limit: float,
        queries: Sequence[str | None],
        start: int,
    ) -> list[CacheHit | None]:
        """`search` for each row of `vectors`, in one pass over the index."""
        table = self._table
        serial, index = table.last_serial, table.index
        if index is None:
            as_matrix(vectors, None)
            return [self.miss(start, key) for _ in queries]
        contexts = np.full(len(vectors), table.context_ids.get(key, NO_CONTEXT), np.int64)
        slots, scores = index.search_many(vectors, contexts, *self._scope(limit))
        hits = (slots >= 0).sum(axis=1).tolist()
        answers: list[CacheHit | None] = []
        for i, (n, query) in enumerate(zip(hits, queries, strict=True)):
            if not n:
                answers.append(self.miss(start, key))
                continue
            found = list(zip(slots[i, :n].tolist(), scores[i, :n].tolist(), strict=True))
            answers.append(self._choose(found, serial, vectors[i], key, limit, query, start))
        return answers

    def _scope(self, limit: float) -> tuple[float, int]:
        """Return the lowest cosine and the number of entries of the first search."""
        if self._agreement is None:
            return limit, _FIRST_CANDIDATES
        return self._agreement.reach(limit), self._agreement.neighbours

    def _choose(
        self,
        found: list[tuple[int, float]],
        serial: int,
        vector: NDArray[np.float32],
        key: ContextKey,
        limit: float,
        query: str | None,
        start: int,
    ) -> CacheHit | None:
        """Return the best candidate that is still in the cache and that the guard accepts."""
        if self._agreement is not None:
            return self._agreed(found, serial, vector, key, limit, query, start)
        refused: set[int] = set()
        wanted = _FIRST_CANDIDATES
        while True:
            candidates = self._candidates(found, serial)
            if candidates is None:
                found, serial = self._search_locked(vector, key, limit, wanted)
                candidates = self._candidates(found, serial) or []
            more, last = len(found) == wanted, wanted == _ALL_CANDIDATES
            # All have the same score: there may be more such entries, and the newest must win.
            if last or not (more and found[0][1] == found[-1][1]):
                hit = self._first_allowed(candidates, refused, key, query, start)
                if hit is not None:
                    return hit
            # If all were expired, they are removed by now and the next search finds others.
            if not more or (last and candidates):
                break
            wanted = _ALL_CANDIDATES
            found, serial = self._search_locked(vector, key, limit, wanted)
        return self.miss(start, key)

    def _search_locked(
        self, vector: NDArray[np.float32], key: ContextKey, limit: float, k: int
    ) -> tuple[list[tuple[int, float]], int]:
        """Search while no entry can change, after a slot changed hands under a search."""
        with self._lock:
            index = self._table.index
            if index is None:
                return [], self._table.last_serial
            name = self._table.context_ids.get(key, NO_CONTEXT)
            return _find_more(index, vector, name, limit, k), self._table.last_serial

    def _candidates(
        self, found: list[tuple[int, float]], serial: int
    ) -> list[_Candidate] | None:
        """Return the entries that are still in the cache, best first, newest first among equals.

        None when a slot has a newer entry than the search can have seen: the score would belong to
        another vector.
        """
        living = []
        with self._lock:
            table, now = self._table, self._clock()
            for slot, score in found:
                if slot >= len(table.serial) or table.serial[slot] == 0:
                    continue
                if table.serial[slot] > serial:
                    return None
                if table.expires[slot] <= now:
                    table.remove(slot, "expired")
                else:
                    value = table.value[slot]
                    assert value is not None
                    living.append(
                        _Candidate(score, table.entry_id(slot), table.query[slot], value)
                    )
        living.sort(reverse=True, key=lambda candidate: candidate[:2])
        return living

    def _first_allowed(
        self,
        candidates: list[_Candidate],
        refused: set[int],
        key: ContextKey,
        query: str | None,
        start: int,
    ) -> CacheHit | None:
        for candidate in candidates:
            if candidate.entry in refused:
                continue
            reason = self._reason(query, candidate)
            if reason is not None:
                self._reject(query, candidate, reason, key)
                refused.add(candidate.entry)
                continue
            hit = self._serve(candidate, candidate.similarity, query, key, start)
            if hit is not None:
                return hit
        return None

    def _agreed(
        self,
        found: list[tuple[int, float]],
        serial: int,
        vector: NDArray[np.float32],
        key: ContextKey,
        limit: float,
        query: str | None,
        start: int,
    ) -> CacheHit | None:
        """Return the answer that the neighbours agree on, from its nearest entry."""
        assert self._agreement is not None
        reach, wanted = self._scope(limit)
        candidates = self._candidates(found, serial)
        # Expired neighbours have been removed, and others take their place.
        while candidates is None or len(candidates) < len(found) == wanted:
            found, serial = self._search_locked(vector, key, reach, wanted)
            candidates = self._candidates(found, serial)
        if not candidates or not self._agreement.may_support(
            limit, [c.similarity for c in candidates], [c.value for c in candidates]
        ):
            return self.miss(start, key)
        allowed = []
        for candidate in candidates:
            reason = self._reason(query, candidate)
            if reason is None:
                allowed.append(candidate)
            elif candidate.similarity >= limit:
                self._reject(query, candidate, reason, key)
        if not allowed:
            return self.miss(start, key)
        place, support = self._agreement.decide(
            [c.similarity for c in allowed], [c.value for c in allowed]
        )
        if support >= limit:
            hit = self._serve(allowed[place], support, query, key, start)
            if hit is not None:
                return hit
        elif allowed[0].similarity >= limit:
            self._reject(query, allowed[0], DISAGREEMENT, key)
        return self.miss(start, key)

    def _serve(
        self,
        candidate: _Candidate,
        support: float,
        query: str | None,
        key: ContextKey,
        start: int,
    ) -> CacheHit | None:
        """Return the hit for a candidate; None if it was removed meanwhile or cannot be read."""
        with self._lock:
            slot = self._table.slot_of_entry(candidate.entry)
            if slot is None:
                return None
            stored, hit, cost = self._take(
                slot,
                candidate.similarity,
                support,
                self._clock(),
                self._guards(query, candidate),
                False,
            )
        return self._answer(stored, hit, cost, query, key, start)

    def _guards(self, query: str | None, candidate: _Candidate) -> bool:
        """Whether a guard can compare the two questions."""
        return query is not None and candidate.query is not None and self._guard is not None

    def _reason(self, query: str | None, candidate: _Candidate) -> str | None:
        """Return why the guard refuses, or None; runs outside the lock. A failing guard refuses."""
        if not self._guards(query, candidate):
            return None
        assert self._guard is not None and query is not None and candidate.query is not None
        try:
            reason = self._guard(query, candidate.query)
        except Exception:
            _log.exception("a cache guard failed; the hit is refused")
            return "guard_error"
        return str(reason) if reason else None

    def _reject(
        self, query: str | None, candidate: _Candidate, reason: str, key: ContextKey
    ) -> None:
        """Count and remember a refusal."""
        self._metrics.reject(reason, key)
        with self._lock:
            slot = self._table.slot_of_entry(candidate.entry)
            if slot is not None:
                self.rejections.append(
                    Rejection(
                        query,
                        candidate.query,
                        candidate.similarity,
                        reason,
                        self._table.context(slot),
                        candidate.entry,
                    )
                )

    def _take(
        self, slot: int, similarity: float, support: float, now: float, guarded: bool, exact: bool
    ) -> tuple[StoredValue, CacheHit, float]:
        """Count a hit on a slot and copy out what it holds; the value is decoded later."""
        table = self._table
        stored = table.value[slot]
        assert stored is not None
        tags, source = table.labels(slot)
        hit = CacheHit(
            None,
            min(similarity, 1.0),
            table.query[slot],
            table.context(slot),
            source,
            tags,
            max(now - table.created[slot], 0.0),
            guarded,
            exact,
            table.entry_id(slot),
            min(support, 1.0),
        )
        table.hit(slot, now, self._sliding)
        return stored, hit, table.cost[slot]

    def _answer(
        self,
        stored: StoredValue,
        hit: CacheHit,
        cost: float,
        query: str | None,
        key: ContextKey,
        start: int,
    ) -> CacheHit | None:
        """Decode and count a hit; None after dropping an entry that cannot be read."""
        try:
            value = decode_value(stored, self._serializer)
        except UnreadableValueError as error:
            self.drop_unreadable(hit.entry, error)
            return None
        # A hit is frozen for users; its value is filled in here, since decoding must not hold the
        # lock.
        object.__setattr__(hit, "value", value)
        elapsed = time.perf_counter_ns() - start
        if self._shadow:
            self._metrics.shadow_hit(elapsed, key)
            self.shadow_hits.append(
                ShadowHit(
                    query, hit.query, hit.similarity, hit.context, hit.entry, hit.support
                )
            )
        else:
            self._metrics.hit(elapsed, key, cost, hit.exact, hit.guarded)
        return hit

    def drop_unreadable(self, entry: int, error: UnreadableValueError) -> None:
        """Remove an entry that the serializer cannot read, so that no other lookup finds it."""
        with self._lock:
            slot = self._table.slot_of_entry(entry)
            if slot is not None:
                self._table.remove(slot, "unreadable")
        self.warn_unreadable(error)

    def warn_unreadable(self, error: UnreadableValueError) -> None:
        """Log why a value cannot be read, once per cache."""
        if self._warning.acquire(blocking=False):
            _log.warning(
                "the cache's serializer cannot read a value; such entries are dropped, "
                "stats() counts them as removed: unreadable",
                exc_info=error.__cause__,
            )

    def miss(self, start: int, key: ContextKey) -> CacheHit | None:
        """Count a miss; the None it returns is the lookup's answer."""
        self._metrics.miss(time.perf_counter_ns() - start, key)
        return None


def _find_more(
    index: EmbeddingIndex, vector: NDArray[np.float32], name: int, limit: float, k: int
) -> list[tuple[int, float]]:
    """Call `index.find` for any number of entries."""
    slots, scores = index.search(vector, name, limit, k)
    return list(zip(slots.tolist(), scores.tolist(), strict=True))
