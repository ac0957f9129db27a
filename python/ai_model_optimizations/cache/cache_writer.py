"""Storing in a cache and removing from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cache_arguments import DEFAULT, Default, checked_tags, checked_ttl
from .cache_base import AT_ONCE
from .cache_reader import CacheReader
from .contexts import Context, context_key
from .entry_table import Record
from .index_optimizer import IndexOptimizer
from .results import CacheHit
from .values import encode_value
from .vectors import EmbeddingLike, check_space, space_of

# Expired entries that one put removes: enough to keep up, too few to be noticed.
_SWEEP = 16


class CacheWriter(CacheReader):
    """Puts and removals; see `SmartCache`."""

    # -- storing ----------------------------------------------------------------------------

    def put(
        self,
        key: str | EmbeddingLike,
        value: Any,
        *,
        query: str | None = None,
        context: Context = "",
        ttl: float | Default | None = DEFAULT,
        tags: Iterable[str] = (),
        source: str | None = None,
        cost: float = 1.0,
    ) -> int:
        """Store an answer and return the entry's id, or 0 while ``AIMO_DISABLE`` names ``cache``.

        An entry with the same text and context is replaced.

        Parameters
        ----------
        key : the question, which is embedded, or its embedding
        value : bytes, str, a JSON value, or whatever the serializer accepts
        query : the question's text, if `key` is an embedding; guards and lookup by text need it
        context : only lookups with this context see the entry
        ttl : time to live in seconds, None for no limit; the cache's by default
        tags : names under which `invalidate` finds it
        source : where the answer came from; returned with each hit
        cost : what computing it cost, in any unit; the "cost" policy keeps expensive entries longer

        Raises
        ------
        TypeError
            If the value cannot be stored, or `key` is a text and the cache has no embedder.
        ValueError
            If the embedding is not valid, the question is blank or the entry exceeds `max_bytes`.
        SpaceMismatchError
            If the embedding carries the ``space_id`` of another model.
        ClosedError
            If the cache was made by `open` and is closed.
        """
        if isinstance(key, str):
            query, key = key if query is None else query, self._required_embedding(key)
        space = space_of(key)
        vector = self._vector(key)
        record = self._record(value, query, context, ttl, tags, source, cost)
        if self._disabled:
            return 0
        with self._lock:
            self._table.sweep(self._clock(), _SWEEP)
            entry = self._insert(record, vector, space)
        self._metrics.put(1)
        self._after_put()
        return entry

    def put_many(
        self,
        keys: Sequence[str] | EmbeddingLike,
        values: Sequence[Any],
        *,
        queries: Sequence[str | None] | None = None,
        context: Context = "",
        ttl: float | Default | None = DEFAULT,
        tags: Iterable[str] = (),
        source: str | None = None,
        cost: float = 1.0,
    ) -> list[int]:
        """Store several answers of one context; texts are embedded in one call.

        Parameters
        ----------
        keys : texts, or (n, dim) embeddings
        values : one per key
        queries : the texts of the embeddings, None where unknown
        context, ttl, tags, source, cost : as in `put`, for all of them

        Returns
        -------
        The entries' ids, in the order of `keys`.

        Raises
        ------
        TypeError, ValueError, SpaceMismatchError, ClosedError
            As `put`; ValueError also if `keys`, `values` and `queries` differ in length.
        """
        if isinstance(keys, (list, tuple)) and keys and isinstance(keys[0], str):
            texts = [self._text(text) for text in keys]
            queries = list(texts) if queries is None else queries
            if not all(self._normalize(text) for text in texts):
                raise ValueError("a blank question cannot be the key of an answer")
            rows = self._embed(texts)
            if rows is None:
                raise TypeError("a text needs an embedder: SmartCache(embedder=...)")
        else:
            rows = self._matrix(keys)
        space = space_of(keys)
        known = [None] * len(rows) if queries is None else list(queries)
        if not len(rows) == len(values) == len(known):
            raise ValueError(f"got {len(rows)} keys, {len(values)} values and {len(known)} queries")
        tags = checked_tags(tags)
        records = [
            self._record(value, query, context, ttl, tags, source, cost)
            for value, query in zip(values, known, strict=True)
        ]
        if self._disabled:
            return [0] * len(records)
        for record in records:
            self._table.weight_of(record, rows.shape[1])
        entries = []
        for record, vector in zip(records, rows, strict=True):
            # One lock per row: readers wait for no more than one write.
            with self._lock:
                self._table.sweep(self._clock(), _SWEEP)
                entries.append(self._insert(record, vector, space))
        self._metrics.put(len(entries))
        self._after_put()
        return entries

    def _insert(self, record: Record, vector: NDArray[np.float32], space: str | None) -> int:
        """Store one entry; the lock must be held."""
        self._check_dimension(vector.shape[0])
        self._space_id = check_space(self._space_id, space, "the embedding")
        return self._table.entry_id(self._table.insert(record, vector))

    def _after_put(self) -> None:
        """Called without the lock after entries were added."""
        table = self._table
        self._optimizer.grown(table.index, len(table), table.last_serial)

    def _record(
        self,
        value: Any,
        query: str | None,
        context: Context,
        ttl: float | Default | None,
        tags: Iterable[str],
        source: str | None,
        cost: float,
    ) -> Record:
        text_key = None if query is None else self._normalize(self._text(query))
        if text_key == "":
            raise ValueError("a blank question cannot be the key of an answer")
        if source is not None and not isinstance(source, str):
            raise TypeError(f"source must be a string, got {type(source).__name__}")
        price = float(cost)
        if not 0.0 <= price < math.inf:
            raise ValueError(f"cost must be finite and not negative, got {cost!r}")
        seconds = self._ttl if isinstance(ttl, Default) else checked_ttl(ttl)
        now = self._clock()
        return Record(
            value=encode_value(value, self._serializer),
            query=query,
            text_key=query if text_key == query else text_key,
            context=self._key(context),
            created=now,
            expires=now + seconds,
            ttl=seconds,
            cost=price,
            tags=checked_tags(tags),
            source=source,
        )

    def _required_embedding(self, text: str) -> NDArray[np.float32]:
        if not self._normalize(self._text(text)):
            raise ValueError("a blank question cannot be the key of an answer")
        rows = self._embed([text])
        if rows is None:
            raise TypeError("a text needs an embedder: SmartCache(embedder=...)")
        vector: NDArray[np.float32] = rows[0]
        return vector

    # -- removing ---------------------------------------------------------------------------

    def invalidate(
        self,
        *,
        context: Context | None = None,
        tag: str | None = None,
        prefix: Context | None = None,
        entry: int | CacheHit | None = None,
    ) -> int:
        """Remove the entries that meet all given conditions; return how many.

        Parameters
        ----------
        context : entries of this context
        tag : entries stored with this tag
        prefix : entries whose context begins with this: a string, or the leading items of a tuple,
            such as all conversations of one tenant
        entry : one entry, by the id that `put` returned or a hit carries, or the hit itself

        Raises
        ------
        TypeError
            If a condition has the wrong type.
        ValueError
            If no condition is given.
        """
        if context is None and tag is None and prefix is None and entry is None:
            raise ValueError("say what to invalidate; clear() removes everything")
        key = None if context is None else context_key(context)
        if tag is not None and not isinstance(tag, str):
            raise TypeError(f"tag must be a string, got {type(tag).__name__}")
        start = None if prefix is None else context_key(prefix)
        entry_id = entry.entry if isinstance(entry, CacheHit) else entry
        if entry_id is not None and not isinstance(entry_id, int):
            raise TypeError(f"entry must be an entry's id or a hit, got {type(entry_id).__name__}")
        with self._lock:
            slots = self._table.slots_of(key, tag, start, entry_id)
            entries = [self._table.entry_id(slot) for slot in slots]
        removed = 0
        for first in range(0, len(entries), AT_ONCE):
            with self._lock:
                for slot in map(self._table.slot_of_entry, entries[first : first + AT_ONCE]):
                    if slot is not None:
                        self._table.remove(slot, "invalidated")
                        removed += 1
        return removed

    def clear(self) -> None:
        """Remove every entry; counters stay. Vectors of another model may be stored afterwards."""
        with self._lock:
            self._clear()

    def _clear(self) -> None:
        self._metrics.removed("cleared", len(self._table))
        self._table.clear()
        self._optimizer = IndexOptimizer(self._device.figures)
        self._space_id = space_of(self._embedder)
