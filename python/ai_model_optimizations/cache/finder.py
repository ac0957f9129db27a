"""The entry that answers a question: exact text, candidates above the threshold, the guard.

A miss takes no lock. The index locks itself, and only when it returns candidates does the finder
lock the table to see whether they still live. Between the two a slot may have changed hands; the
serial of the entry tells, and the search is then repeated under the lock. Guards and decoding run
outside it, because they are the user's code.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from .contexts import ContextKey
from .entry_table import NO_CONTEXT, EntryTable
from .guards import Guard
from .metrics import Metrics
from .results import CacheHit, Rejection, ShadowHit
from .values import Serializer, StoredValue, decode_value
from .vectors import as_matrix, as_vector

_log = logging.getLogger("ai_model_optimizations")

# Candidates looked at before giving up on a question whose nearest neighbours are refused.
_FIRST_CANDIDATES = 4
_ALL_CANDIDATES = 64


class Finder:
    """Looks up answers in a table that others change meanwhile.

    Parameters
    ----------
    table, lock : the entries, and the lock that protects everything in them but the index
    guard : compares question and candidate; None for none
    shadow : hits are counted and remembered as those of shadow mode, which answers nothing
    keep_last : how many rejections and shadow hits are remembered
    """

    def __init__(
        self,
        table: EntryTable,
        lock: threading.Lock,
        clock: Callable[[], float],
        metrics: Metrics,
        guard: Guard | None,
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
        self._serializer = serializer
        self._sliding = sliding
        self._shadow = shadow
        self.rejections: deque[Rejection] = deque(maxlen=keep_last)
        self.shadow_hits: deque[ShadowHit] = deque(maxlen=keep_last)

    def find_text(
        self, text_key: str, text: str | None, key: ContextKey, start: int
    ) -> CacheHit | None:
        """The entry of the same text in the same context; no miss is counted when there is none."""
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
            stored, hit, cost = self._take(slot, 1.0, now, guarded=True, exact=True)
        return self._answer(stored, hit, cost, text, key, start)

    def stored_text(self, text_key: str, key: ContextKey) -> StoredValue | None:
        """The value under an exact text, without counting a lookup."""
        with self._lock:
            slot = self._table.slot_of_text(key, text_key)
            if slot is None or self._table.expires[slot] <= self._clock():
                return None
            return self._table.value[slot]

    def search(
        self,
        vector: NDArray[np.float32],
        key: ContextKey,
        limit: float,
        query: str | None,
        start: int,
    ) -> CacheHit | None:
        """The best entry of a context at or above `limit`.

        Parameters
        ----------
        vector : of the question; the index checks it
        query : the question where it is known, for the guard
        start : when the lookup began, in nanoseconds
        """
        table = self._table
        serial, index = table.last_serial, table.index
        if index is None:
            as_vector(vector, None)
            return self.miss(start, key)
        found = index.find(vector, table.context_ids.get(key, NO_CONTEXT), limit, _FIRST_CANDIDATES)
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
        slots, scores = index.search_many(vectors, contexts, limit, _FIRST_CANDIDATES)
        hits = (slots >= 0).sum(axis=1).tolist()
        answers: list[CacheHit | None] = []
        for i, (n, query) in enumerate(zip(hits, queries, strict=True)):
            if not n:
                answers.append(self.miss(start, key))
                continue
            found = list(zip(slots[i, :n].tolist(), scores[i, :n].tolist(), strict=True))
            answers.append(self._choose(found, serial, vectors[i], key, limit, query, start))
        return answers

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
        """The best candidate that lives and that the guard lets pass."""
        refused: set[int] = set()
        wanted = _FIRST_CANDIDATES
        while True:
            candidates = self._candidates(found, serial)
            if candidates is None:
                found, serial = self._search_locked(vector, key, limit, wanted)
                candidates = self._candidates(found, serial) or []
            more, last = len(found) == wanted, wanted == _ALL_CANDIDATES
            # All alike: there may be more of the same, and the newest of them must win.
            if last or not (more and found[0][1] == found[-1][1]):
                hit = self._first_allowed(candidates, refused, key, query, start)
                if hit is not None:
                    return hit
            # After a round of nothing but expired entries, which are gone now, others come up.
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
            return index.find(vector, name, limit, k), self._table.last_serial

    def _candidates(
        self, found: list[tuple[int, float]], serial: int
    ) -> list[tuple[float, int, str | None]] | None:
        """Living entries as (similarity, entry, query), best and then newest first.

        None when a slot has a younger entry than the search can have seen: its score would be
        that of another vector.
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
                    living.append((score, table.entry_id(slot), table.query[slot]))
        living.sort(reverse=True, key=lambda candidate: candidate[:2])
        return living

    def _first_allowed(
        self,
        candidates: list[tuple[float, int, str | None]],
        refused: set[int],
        key: ContextKey,
        query: str | None,
        start: int,
    ) -> CacheHit | None:
        for similarity, entry, text in candidates:
            if entry in refused:
                continue
            guarded = query is not None and text is not None and self._guard is not None
            if guarded and self._refuse(query, text, similarity, entry, key):
                refused.add(entry)
                continue
            with self._lock:
                slot = self._table.slot_of_entry(entry)
                if slot is None:
                    continue
                stored, hit, cost = self._take(slot, similarity, self._clock(), guarded, False)
            return self._answer(stored, hit, cost, query, key, start)
        return None

    def _refuse(
        self, query: str | None, text: str | None, similarity: float, entry: int, key: ContextKey
    ) -> bool:
        """Ask the guard, outside the lock; one that fails refuses."""
        assert self._guard is not None and query is not None and text is not None
        try:
            reason = self._guard(query, text)
        except Exception:
            _log.exception("a cache guard failed; the hit is refused")
            reason = "guard_error"
        if not reason:
            return False
        reason = str(reason)
        self._metrics.reject(reason, key)
        with self._lock:
            slot = self._table.slot_of_entry(entry)
            if slot is not None:
                context = self._table.context(slot)
                self.rejections.append(Rejection(query, text, similarity, reason, context, entry))
        return True

    def _take(
        self, slot: int, similarity: float, now: float, guarded: bool, exact: bool
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
    ) -> CacheHit:
        # Frozen for the user; this is its maker, filling in what must not be decoded under a lock.
        object.__setattr__(hit, "value", decode_value(stored, self._serializer))
        elapsed = time.perf_counter_ns() - start
        if self._shadow:
            self._metrics.shadow_hit(elapsed, key)
            self.shadow_hits.append(
                ShadowHit(query, hit.query, hit.similarity, hit.context, hit.entry)
            )
        else:
            self._metrics.hit(elapsed, key, cost, hit.exact, hit.guarded)
        return hit

    def miss(self, start: int, key: ContextKey) -> CacheHit | None:
        """Count a miss; the None it returns is the lookup's answer."""
        self._metrics.miss(time.perf_counter_ns() - start, key)
        return None
