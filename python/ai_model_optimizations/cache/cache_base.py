"""The state of a cache: its options, its parts, its entries and its counters.

`EntryTable` holds the entries, `Finder` looks them up, `Metrics` counts; this class joins them and
owns the lock. Each layer above adds one thing that a cache does: `CacheReader` looks up,
`CacheWriter` stores and removes, `FiledCache` follows a file, `SmartCache` computes, and has the
async forms.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from .._environment import disabled
from .._prometheus import register
from .agreement import Agreement
from .cache_arguments import check_collaborators, checked_count, checked_threshold, checked_ttl
from .calibration import Calibration, PairLike, calibrate_pairs, measure_pairs
from .contexts import Context, ContextKey, context_key
from .entry_table import EntryTable
from .finder import Finder
from .function_names import FunctionNames
from .guards import Guard, GuardSpec, make_guard
from .index_device import IndexDevice
from .index_optimizer import IndexOptimizer
from .metrics import CacheCollector, CacheStats, ContextStats, Metrics
from .results import CacheEntry, Rejection, ShadowHit
from .single_flight import SingleFlight
from .text_keys import normalize_text
from .values import Serializer, StoredValue, UnreadableValueError, decode_value
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

if TYPE_CHECKING:
    from prometheus_client.registry import CollectorRegistry

#: Entries that are removed or copied under one hold of the lock, before readers get a turn.
AT_ONCE = 512


class CacheBase:
    """Options, entries, arguments, calibration and counters; see `SmartCache`."""

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
        capacity = checked_count("capacity", capacity, 1)
        max_bytes = checked_count("max_bytes", max_bytes, 1)
        keep_last = checked_count("keep_last", keep_last, 0)
        check_collaborators(embedder, serializer, space_id, normalize, clock)
        if mode not in ("serve", "shadow"):
            raise ValueError(f'mode must be "serve" or "shadow", got {mode!r}')
        if row_dtype not in ("f16", "int8"):
            raise ValueError(f'row_dtype must be "f16" or "int8", got {row_dtype!r}')
        if agreement is not None and not isinstance(agreement, Agreement):
            raise TypeError(
                f"agreement must be an Agreement or None, got {type(agreement).__name__}"
            )
        self._agreement = agreement
        self._threshold = checked_threshold(threshold)
        self._ttl = checked_ttl(ttl)
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
        self._functions = FunctionNames()
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
        """The lowest cosine similarity at which an entry answers."""
        return self._threshold

    @threshold.setter
    def threshold(self, value: float) -> None:
        self._threshold = checked_threshold(value)

    @property
    def space_id(self) -> str | None:
        """The embedding space of the stored vectors, None while it is not known."""
        return self._space_id

    @property
    def device(self) -> str:
        """Where lookups run: ``"cpu"`` or ``"cuda:N"``."""
        return self._device.name

    @property
    def dimension(self) -> int | None:
        """Length of the stored vectors, None before the first."""
        return self._table.dimension

    def __len__(self) -> int:
        self._sweep()
        with self._lock:
            return len(self._table)

    def __contains__(self, text: str) -> bool:
        """Whether the same text has an entry without a context; counts nothing, as iterating."""
        text_key, key = self._normalize(self._text(text)), self._key("")
        with self._lock:
            slot = self._table.slot_of_text(key, text_key) if text_key else None
            return slot is not None and bool(self._table.expires[slot] > self._clock())

    def __iter__(self) -> Iterator[CacheEntry]:
        """Iterate over the current entries, without counting hits."""
        with self._lock:
            entries = self._table.entry_ids()
        for entry in entries:
            with self._lock:
                slot = self._table.slot_of_entry(entry)
                now = self._clock()
                if slot is None or self._table.expires[slot] <= now:
                    continue
                record, context = self._table.record(slot), self._table.context(slot)
            try:
                value = decode_value(record.value, self._serializer)
            except UnreadableValueError as error:
                self._finder.drop_unreadable(entry, error)
                continue
            yield CacheEntry(
                entry=entry,
                value=value,
                query=record.query,
                context=context,
                source=record.source,
                tags=record.tags,
                age=now - record.created,
                expires_in=None if math.isinf(record.expires) else record.expires - now,
                hits=record.hits,
                cost=record.cost,
            )

    def _sweep(self) -> None:
        """Remove expired entries, a few at a time, so that readers need not wait for all."""
        removed = AT_ONCE
        while removed == AT_ONCE:
            with self._lock:
                removed = self._table.sweep(self._clock(), AT_ONCE)

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
        """Find the lowest threshold at which wrong hits are rare enough, and set it.

        Parameters
        ----------
        pairs : questions and the entries that would answer them, labelled right or wrong:
            `LabelledPair`, ``(question, candidate, same_answer)`` (needs an embedder) or
            ``(similarity, same_answer)``. The cache's guard is applied to pairs with texts, so the
            curve is that of threshold and guard together.
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
        """Return the counters since the cache was made, and its current size."""
        self._sweep()
        with self._lock:
            sizes = len(self._table), self._table.context_count(), self._table.bytes
            index = self._table.index
        return self._metrics.snapshot(*sizes, self._device.name, *self._device.figures(index))

    def context_stats(self, context: Context = "") -> ContextStats:
        """Return the counters of one context.

        Raises
        ------
        ValueError
            If the cache was not made with ``context_stats=True``.
        """
        return self._metrics.of_context(context_key(context))

    def rejections(self) -> list[Rejection]:
        """Return the latest candidates that a guard or their neighbours refused, oldest first."""
        with self._lock:
            return list(self._finder.rejections)

    def shadow_hits(self) -> list[ShadowHit]:
        """Return the latest answers that shadow mode withheld, oldest first."""
        return list(self._finder.shadow_hits)

    def prometheus_collector(self, name: str = "default") -> CacheCollector:
        """Return a collector of this cache alone, for ``REGISTRY.register``, labelled `name`.

        Several such collectors in one registry repeat the HELP and TYPE lines of their families,
        which strict parsers refuse; caches registered by `register_prometheus` share them.
        """
        return CacheCollector(self.stats, name)

    def register_prometheus(
        self, registry: CollectorRegistry | None = None, name: str = "default"
    ) -> None:
        """Export the counters through a registry, for as long as the cache is alive.

        Parameters
        ----------
        registry : the default one of ``prometheus_client`` unless one is given
        name : the label of this cache, which replaces another cache of the same name
        """
        if not isinstance(name, str):
            raise TypeError(f"name must be a string, got {type(name).__name__}")
        register(
            registry,
            "cache",
            {"cache": name},
            self,
            lambda cache: CacheCollector(cache.stats, name).collect(),
        )

    # -- arguments --------------------------------------------------------------------------

    def _key(self, context: Context) -> ContextKey:
        if self._require_context and context in ("", ()):
            raise ValueError("this cache was made with require_context=True: pass context=...")
        return context_key(context)

    def _limit(self, threshold: float | None) -> float:
        return self._threshold if threshold is None else checked_threshold(threshold)

    @staticmethod
    def _text(text: str) -> str:
        if not isinstance(text, str):
            raise TypeError(f"text must be a string, got {type(text).__name__}")
        return text

    def _vector(self, embedding: EmbeddingLike) -> NDArray[np.float32]:
        """Return one embedding; the index checks the numbers of a float32 vector as it reads it."""
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
        """Embed texts; None without an embedder."""
        if self._embedder is None:
            return None
        rows = embed(self._embedder, texts)
        self._check_dimension(rows.shape[1])
        return rows
