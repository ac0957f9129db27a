"""The state of a cache and what changes it: options, arguments, storing, removing, counting.

`EntryTable` holds the entries, `Finder` looks them up, `Metrics` counts; this class joins them and
owns the lock. `FiledCache` adds files, `SmartCache` computing and the async forms.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .._environment import disabled
from .agreement import Agreement
from .calibration import Calibration, PairLike, calibrate_pairs, measure_pairs
from .contexts import Context, ContextKey, context_key
from .entry_table import EntryTable, Record
from .finder import Finder
from .guards import Guard, GuardSpec, make_guard
from .index_device import IndexDevice
from .index_optimizer import IndexOptimizer
from .metrics import CacheCollector, CacheStats, ContextStats, Metrics
from .results import CacheEntry, CacheHit, Rejection, ShadowHit
from .single_flight import SingleFlight
from .text_keys import normalize_text
from .values import Serializer, StoredValue, decode_value, encode_value
from .vectors import (
    FLOAT32,
    Embedder,
    EmbeddingLike,
    as_matrix,
    as_vector,
    check_space,
    embed,
    space_of,
)

# Expired entries that one put clears away: enough to keep up, too few to be felt.
_SWEEP = 16


class _Default:
    """The type of `DEFAULT`, which says "as the cache was told" where None means "never"."""

    def __repr__(self) -> str:
        return "DEFAULT"


DEFAULT = _Default()


def _checked_threshold(threshold: float) -> float:
    value = float(threshold)
    if not -1.0 <= value <= 1.0:
        raise ValueError(f"threshold is a cosine similarity in [-1, 1], got {threshold!r}")
    return value


def _checked_ttl(ttl: float | None) -> float:
    if ttl is None:
        return math.inf
    value = float(ttl)
    if not value > 0:
        raise ValueError(f"ttl must be positive seconds or None for never, got {ttl!r}")
    return value


def _checked_tags(tags: Iterable[str]) -> tuple[str, ...]:
    if tags == ():
        return ()
    if isinstance(tags, str):
        raise TypeError("tags must be a sequence of strings, not one string")
    unique = tuple(dict.fromkeys(tags))
    if not all(isinstance(tag, str) for tag in unique):
        raise TypeError("tags must be strings")
    return unique


class CacheBase:
    """Lookups, entries, calibration and counters; see `SmartCache`."""

    def __init__(
        self,
        capacity: int = 100_000,
        threshold: float = 0.85,
        ttl: float | None = 3600.0,
        max_bytes: int = 256 << 20,
        policy: Literal["lru", "lfu", "cost"] = "lfu",
        embedder: Embedder | None = None,
        guard: GuardSpec = "auto",
        require_context: bool = False,
        mode: Literal["serve", "shadow"] = "serve",
        *,
        agreement: Agreement | None = None,
        sliding: bool = False,
        serializer: Serializer | None = None,
        row_dtype: Literal["f16", "int8"] = "f16",
        space_id: str | None = None,
        normalize: Callable[[str], str] = normalize_text,
        context_stats: bool = False,
        keep_last: int = 256,
        clock: Callable[[], float] = time.monotonic,
        device: str = "cpu",
    ) -> None:
        if capacity < 1 or max_bytes < 1:
            raise ValueError(
                f"capacity and max_bytes must be positive, got {capacity} and {max_bytes}"
            )
        if mode not in ("serve", "shadow"):
            raise ValueError(f'mode must be "serve" or "shadow", got {mode!r}')
        if row_dtype not in ("f16", "int8"):
            raise ValueError(f'row_dtype must be "f16" or "int8", got {row_dtype!r}')
        if agreement is not None and not isinstance(agreement, Agreement):
            raise TypeError(
                f"agreement must be an Agreement or None, got {type(agreement).__name__}"
            )
        self._agreement = agreement
        self._threshold = _checked_threshold(threshold)
        self._ttl = _checked_ttl(ttl)
        self._sliding = sliding
        self._shadow = mode == "shadow"
        self._embedder = embedder
        self._require_context = require_context
        self._serializer = serializer
        self._normalize = normalize
        self._clock = clock
        self._space_id = check_space(space_id, space_of(embedder), "the embedder")
        self._disabled = disabled("cache")
        self._guard: Guard | None = None if disabled("guard") else make_guard(guard)
        self._metrics = Metrics(context_stats)
        self._flights: SingleFlight[StoredValue] = SingleFlight()
        self._lock = threading.Lock()
        # Protected by _lock, except the index, which locks itself.
        self._device = IndexDevice(device)
        self._table = EntryTable(
            capacity, max_bytes, policy, row_dtype, self._on_removed, self._device
        )
        self._optimizer = IndexOptimizer(self._device.figures)
        self._finder = Finder(
            self._table,
            self._lock,
            clock,
            self._metrics,
            self._guard,
            agreement,
            serializer,
            sliding=sliding,
            shadow=self._shadow,
            keep_last=keep_last,
        )

    # -- properties -------------------------------------------------------------------------

    @property
    def threshold(self) -> float:
        """The cosine similarity from which an entry may answer."""
        return self._threshold

    @threshold.setter
    def threshold(self, value: float) -> None:
        self._threshold = _checked_threshold(value)

    @property
    def space_id(self) -> str | None:
        """The embedding space of the stored vectors, None while it is not known."""
        return self._space_id

    @property
    def device(self) -> str:
        """Where lookups compare: ``"cpu"`` or ``"cuda:N"``."""
        return self._device.name

    @property
    def dimension(self) -> int | None:
        """Length of the stored vectors, None before the first."""
        return self._table.dimension

    def __len__(self) -> int:
        with self._lock:
            self._table.sweep(self._clock())
            return len(self._table)

    def __iter__(self) -> Iterator[CacheEntry]:
        """Iterate over the entries of this moment, without counting hits."""
        with self._lock:
            entries = [self._table.entry_id(slot) for slot in self._table.slots()]
        for entry in entries:
            with self._lock:
                slot = self._table.slot_of_entry(entry)
                now = self._clock()
                if slot is None or self._table.expires[slot] <= now:
                    continue
                record, context = self._table.record(slot), self._table.context(slot)
            yield CacheEntry(
                entry=entry,
                value=decode_value(record.value, self._serializer),
                query=record.query,
                context=context,
                source=record.source,
                tags=record.tags,
                age=now - record.created,
                expires_in=None if math.isinf(record.expires) else record.expires - now,
                hits=record.hits,
                cost=record.cost,
            )

    # -- looking up -------------------------------------------------------------------------

    def get_semantic_similar(
        self,
        query_embedding: EmbeddingLike,
        threshold: float | None = None,
        context: Context = "",
        query: str | None = None,
    ) -> CacheHit | None:
        """Return the best entry at or above the threshold, or None.

        Parameters
        ----------
        query_embedding : (dim,) numbers: list, tuple, numpy array or torch tensor, normalised or
            not. A contiguous float32 array costs no copy.
        threshold : cosine similarity in [-1, 1]; None takes the cache's own
        context : only entries stored with this context are seen
        query : the question's text. With it the same text is found first, and guards compare the
            question with that of the entry; without it the hit says ``guarded=False``.

        Raises
        ------
        TypeError, ValueError
            If the embedding is not `dim` finite numbers with a direction, or the threshold or
            context is not valid.
        SpaceMismatchError
            If the embedding carries the ``space_id`` of another model.
        """
        start = time.perf_counter_ns()
        if (
            type(query_embedding) is np.ndarray
            and query_embedding.dtype is FLOAT32
            and query_embedding.ndim == 1
        ):
            vector = query_embedding
        else:
            vector = self._vector(query_embedding)
        key = context if type(context) is str else context_key(context)
        if not key and self._require_context:
            self._key(context)
        limit = self._threshold if threshold is None else _checked_threshold(threshold)
        if query is not None:
            found = self._get(query, key, limit, start, vector)
        elif self._disabled:
            found = self._finder.miss(start, key)
        else:
            found = self._finder.search(vector, key, limit, None, start)
        return None if self._shadow else found

    def get(
        self, text: str, threshold: float | None = None, context: Context = ""
    ) -> CacheHit | None:
        """Look up a question by its text: the same text first, then by meaning.

        Without an embedder only the same text is found. A blank text is never an answer's key and
        always misses.
        """
        start = time.perf_counter_ns()
        key = self._key(context)
        found = self._get(text, key, self._limit(threshold), start, None)
        return None if self._shadow else found

    def get_many(
        self,
        queries: Sequence[str] | EmbeddingLike,
        threshold: float | None = None,
        context: Context = "",
        *,
        texts: Sequence[str | None] | None = None,
    ) -> list[CacheHit | None]:
        """Look up several questions of one context in one pass over the index.

        Parameters
        ----------
        queries : texts (needs an embedder), or (n, dim) embeddings
        texts : the questions of the embeddings, where they are known
        threshold, context : as in `get_semantic_similar`
        """
        start = time.perf_counter_ns()
        key = self._key(context)
        limit = self._limit(threshold)
        vectors: NDArray[np.float32] | None = None
        known: list[str | None]
        if isinstance(queries, (list, tuple)) and queries and isinstance(queries[0], str):
            known = [self._text(text) for text in queries]
        else:
            vectors = self._matrix(queries)
            known = [None] * len(vectors) if texts is None else list(texts)
            if len(known) != len(vectors):
                raise ValueError(f"{len(vectors)} embeddings came with {len(known)} texts")
        found = self._get_many(known, vectors, key, limit, start)
        return [None] * len(found) if self._shadow else found

    def _get_many(
        self,
        texts: Sequence[str | None],
        vectors: NDArray[np.float32] | None,
        key: ContextKey,
        limit: float,
        start: int,
    ) -> list[CacheHit | None]:
        if self._disabled:
            return [self._finder.miss(start, key) for _ in texts]
        found: list[CacheHit | None] = [None] * len(texts)
        unanswered: list[int] = []
        for i, text in enumerate(texts):
            text_key = None if text is None else self._normalize(text)
            if text_key is not None:
                found[i] = self._finder.find_text(text_key, text, key, start)
            if found[i] is None and text_key == "":
                self._finder.miss(start, key)
            elif found[i] is None:
                unanswered.append(i)
        asked = [texts[i] for i in unanswered]
        if not asked:
            return found
        rows = (
            self._embed([text or "" for text in asked]) if vectors is None else vectors[unanswered]
        )
        answers = (
            [self._finder.miss(start, key) for _ in asked]
            if rows is None
            else self._finder.search_many(rows, key, limit, asked, start)
        )
        for i, answer in zip(unanswered, answers, strict=True):
            found[i] = answer
        return found

    def _get(
        self,
        text: str,
        key: ContextKey,
        limit: float,
        start: int,
        vector: NDArray[np.float32] | None,
    ) -> CacheHit | None:
        text_key = self._normalize(self._text(text))
        if vector is not None:
            self._check_dimension(vector.shape[-1])
        if self._disabled or not text_key:
            return self._finder.miss(start, key)
        found = self._finder.find_text(text_key, text, key, start)
        if found is not None:
            return found
        if vector is None:
            rows = self._embed([text])
            if rows is None:
                return self._finder.miss(start, key)
            vector = rows[0]
        return self._finder.search(vector, key, limit, text, start)

    # -- storing ----------------------------------------------------------------------------

    def put(
        self,
        key: str | EmbeddingLike,
        value: Any,
        *,
        query: str | None = None,
        context: Context = "",
        ttl: float | _Default | None = DEFAULT,
        tags: Iterable[str] = (),
        source: str | None = None,
        cost: float = 1.0,
    ) -> int:
        """Store an answer and return the entry's name.

        The same text in the same context replaces what was there.

        Parameters
        ----------
        key : the question, which is embedded, or its embedding
        value : bytes, str, JSON, or what the serializer takes
        query : the question of an embedding; guards and exact lookup need it
        context : who may see the entry
        ttl : seconds this entry lives, None for ever; the cache's own by default
        tags : names under which `invalidate` finds it
        source : where the answer came from; returned with it
        cost : what computing it cost, in any unit; the "cost" policy keeps the dear ones

        Raises
        ------
        TypeError
            If the value cannot be held, or there is no embedder for a text.
        ValueError
            If the embedding is not valid, the question blank or the entry above `max_bytes`.
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
        ttl: float | _Default | None = DEFAULT,
        tags: Iterable[str] = (),
        source: str | None = None,
        cost: float = 1.0,
    ) -> list[int]:
        """Store several answers of one context; texts are embedded in one call.

        Parameters
        ----------
        keys : texts, or (n, dim) embeddings
        values : one per key
        queries : the questions of the embeddings, where they are known
        context, ttl, tags, source, cost : as in `put`, for all of them
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
        tags = _checked_tags(tags)
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
        """Store one entry; called with the lock held."""
        self._check_dimension(vector.shape[0])
        self._space_id = check_space(self._space_id, space, "the embedding")
        return self._table.entry_id(self._table.insert(record, vector))

    def _after_put(self) -> None:
        """Called without the lock when entries were added."""
        table = self._table
        self._optimizer.grown(table.index, len(table), table.last_serial)

    def _record(
        self,
        value: Any,
        query: str | None,
        context: Context,
        ttl: float | _Default | None,
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
        seconds = self._ttl if isinstance(ttl, _Default) else _checked_ttl(ttl)
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
            tags=_checked_tags(tags),
            source=source,
        )

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
        prefix : entries whose context begins so: a string context with a string, a tuple with the
            items of a tuple, such as all conversations of one tenant
        entry : one entry, by the name that `put` or a hit gave, or the hit itself
        """
        if context is None and tag is None and prefix is None and entry is None:
            raise ValueError("say what to invalidate; clear() removes everything")
        key = None if context is None else context_key(context)
        name = entry.entry if isinstance(entry, CacheHit) else entry
        with self._lock:
            slots = self._table.slots_of(key, tag, prefix, name)
            for slot in slots:
                self._table.remove(slot, "invalidated")
        return len(slots)

    def clear(self) -> None:
        """Remove every entry; the counters stay. Vectors of another model may follow."""
        with self._lock:
            self._clear()

    def _clear(self) -> None:
        self._table.clear()
        self._optimizer = IndexOptimizer(self._device.figures)
        self._space_id = space_of(self._embedder)

    def _on_removed(self, slot: int, reason: str) -> None:
        """Called with the lock held, before an entry leaves."""
        self._metrics.removed(reason)

    # -- calibration and counters -----------------------------------------------------------

    def calibrate(
        self,
        pairs: Iterable[PairLike],
        max_false_hit_rate: float = 0.02,
        *,
        confidence: float = 0.95,
        apply: bool = True,
        show: bool = True,
    ) -> Calibration:
        """Choose the lowest threshold at which wrong hits are rare enough, and take it.

        Parameters
        ----------
        pairs : questions and the entries that would answer them, judged: `LabelledPair`,
            ``(question, candidate, same_answer)`` (needs an embedder) or
            ``(similarity, same_answer)``. The guard of this cache judges the pairs with texts, so
            the curve is that of threshold and guard together.
        max_false_hit_rate : share of hits that may be wrong, by the upper Wilson bound
        confidence : one-sided confidence of that bound
        apply : set this cache's threshold, if one was found
        show : print the curve

        Returns
        -------
        The curve and the choice; ``threshold`` is None when no threshold meets the bound with
        these pairs, and the cache then keeps its own.
        """
        measured = measure_pairs(pairs, self._embedder)
        result = calibrate_pairs(measured, self._guard, max_false_hit_rate, confidence)
        if apply and result.threshold is not None:
            self._threshold = result.threshold
        if show:
            print(result)
        return result

    def stats(self) -> CacheStats:
        """Counters since the cache was made, and its size now."""
        with self._lock:
            self._table.sweep(self._clock())
            sizes = len(self._table), self._table.context_count(), self._table.bytes
            index = self._table.index
        return self._metrics.snapshot(*sizes, self._device.name, *self._device.figures(index))

    def context_stats(self, context: Context = "") -> ContextStats:
        """Counters of one context; the cache must have been made with ``context_stats=True``."""
        return self._metrics.of_context(context_key(context))

    def rejections(self) -> list[Rejection]:
        """The latest candidates that a guard or their neighbours refused, oldest first."""
        with self._lock:
            return list(self._finder.rejections)

    def shadow_hits(self) -> list[ShadowHit]:
        """The latest answers that shadow mode kept back, oldest first."""
        return list(self._finder.shadow_hits)

    def prometheus_collector(self, name: str = "default") -> CacheCollector:
        """A collector for ``prometheus_client.REGISTRY.register``; `name` labels this cache."""
        return CacheCollector(self.stats, name)

    # -- arguments --------------------------------------------------------------------------

    def _key(self, context: Context) -> ContextKey:
        if self._require_context and context in ("", ()):
            raise ValueError("this cache was made with require_context=True: pass context=...")
        return context_key(context)

    def _limit(self, threshold: float | None) -> float:
        return self._threshold if threshold is None else _checked_threshold(threshold)

    @staticmethod
    def _text(text: str) -> str:
        if not isinstance(text, str):
            raise TypeError(f"text must be a string, got {type(text).__name__}")
        return text

    def _vector(self, embedding: EmbeddingLike) -> NDArray[np.float32]:
        """One embedding; the index checks the numbers of a float32 vector, as it reads them."""
        if type(embedding) is np.ndarray and embedding.dtype is FLOAT32 and embedding.ndim == 1:
            self._check_dimension(embedding.shape[0])
            return embedding
        check_space(self._space_id, space_of(embedding), "the embedding")
        return as_vector(embedding, self._table.dimension)

    def _matrix(self, embeddings: EmbeddingLike) -> NDArray[np.float32]:
        check_space(self._space_id, space_of(embeddings), "the embeddings")
        return as_matrix(embeddings, self._table.dimension)

    def _check_dimension(self, dimension: int) -> None:
        if self._table.dimension not in (None, dimension) or dimension == 0:
            raise ValueError(
                f"embedding must have shape ({self._table.dimension},), got ({dimension},)"
            )

    def _embed(self, texts: Sequence[str]) -> NDArray[np.float32] | None:
        """Vectors of texts; None without an embedder."""
        if self._embedder is None:
            return None
        rows = embed(self._embedder, texts)
        self._check_dimension(rows.shape[1])
        return rows

    def _required_embedding(self, text: str) -> NDArray[np.float32]:
        if not self._normalize(self._text(text)):
            raise ValueError("a blank question cannot be the key of an answer")
        rows = self._embed([text])
        if rows is None:
            raise TypeError("a text needs an embedder: SmartCache(embedder=...)")
        vector: NDArray[np.float32] = rows[0]
        return vector
