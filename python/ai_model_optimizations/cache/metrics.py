"""Counters of a cache, as a dictionary and for Prometheus."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypedDict

from .._prometheus import prometheus_module
from .contexts import ContextKey

# Buckets are powers of two in nanoseconds: an integer's bit length is its bucket.
_BUCKETS = 41
# Counters per context are a convenience; with a million tenants they must not outgrow the cache.
_MAX_CONTEXTS = 10_000


class ContextStats(TypedDict):
    """Counters of one context."""

    hits: int
    misses: int
    rejected: int


class CacheStats(TypedDict):
    """What `SmartCache.stats` returns."""

    entries: int
    contexts: int
    bytes: int
    lookups: int
    hits: int
    exact_hits: int
    unguarded_hits: int
    shadow_hits: int
    misses: int
    hit_rate: float
    rejected: dict[str, int]
    puts: int
    removed: dict[str, int]
    cost_saved: float
    lookup_seconds_sum: float
    lookup_seconds: dict[float, int]
    device: str
    device_rows: int
    device_searches: int
    device_failures: int


class Metrics:
    """Counters; every method may be called from any thread."""

    def __init__(self, per_context: bool) -> None:
        self._lock = threading.Lock()
        self._keeps_contexts = per_context
        self.reset()

    def reset(self) -> None:
        """Start all counters at zero."""
        self._hits = 0
        self._exact_hits = 0
        self._unguarded_hits = 0
        self._shadow_hits = 0
        self._misses = 0
        self._puts = 0
        self._cost_saved = 0.0
        self._rejected: Counter[str] = Counter()
        self._removed: Counter[str] = Counter()
        self._nanoseconds = 0
        self._histogram = [0] * _BUCKETS
        self._per_context: dict[ContextKey, ContextStats] | None = (
            {} if self._keeps_contexts else None
        )

    def miss(self, nanoseconds: int, context: ContextKey) -> None:
        """Count a lookup that found no answer."""
        with self._lock:
            self._misses += 1
            self._nanoseconds += nanoseconds
            self._histogram[nanoseconds.bit_length()] += 1
            if self._per_context is not None:
                self._of(context)["misses"] += 1

    def hit(
        self, nanoseconds: int, context: ContextKey, cost: float, exact: bool, guarded: bool
    ) -> None:
        """Count a lookup that found an answer."""
        with self._lock:
            self._hits += 1
            self._exact_hits += exact
            self._unguarded_hits += not guarded
            self._cost_saved += cost
            self._nanoseconds += nanoseconds
            self._histogram[nanoseconds.bit_length()] += 1
            if self._per_context is not None:
                self._of(context)["hits"] += 1

    def shadow_hit(self, nanoseconds: int, context: ContextKey) -> None:
        """Count an answer that shadow mode withheld: for the user, the lookup missed."""
        with self._lock:
            self._shadow_hits += 1
        self.miss(nanoseconds, context)

    def reject(self, reason: str, context: ContextKey) -> None:
        """Count a candidate that a guard refused."""
        with self._lock:
            self._rejected[reason] += 1
            if self._per_context is not None:
                self._of(context)["rejected"] += 1

    def put(self, entries: int) -> None:
        """Count entries that were stored."""
        with self._lock:
            self._puts += entries

    def removed(self, reason: str, entries: int = 1) -> None:
        """Count entries that were removed."""
        if entries:
            with self._lock:
                self._removed[reason] += entries

    def _of(self, context: ContextKey) -> ContextStats:
        assert self._per_context is not None
        if context not in self._per_context and len(self._per_context) >= _MAX_CONTEXTS:
            context = ("other",)
        return self._per_context.setdefault(context, {"hits": 0, "misses": 0, "rejected": 0})

    def of_context(self, context: ContextKey) -> ContextStats:
        """Return the counters of one context; ValueError when they are not kept."""
        with self._lock:
            if self._per_context is None:
                raise ValueError("counters per context are off; pass context_stats=True")
            stats = self._per_context.get(context, {"hits": 0, "misses": 0, "rejected": 0})
            return {**stats}

    def snapshot(
        self,
        entries: int,
        contexts: int,
        held: int,
        device: str = "cpu",
        device_rows: int = 0,
        device_searches: int = 0,
        device_failures: int = 0,
    ) -> CacheStats:
        """Return all counters, read at one instant."""
        with self._lock:
            lookups = self._hits + self._misses
            used = max((i for i, n in enumerate(self._histogram) if n), default=0)
            return {
                "entries": entries,
                "contexts": contexts,
                "bytes": held,
                "lookups": lookups,
                "hits": self._hits,
                "exact_hits": self._exact_hits,
                "unguarded_hits": self._unguarded_hits,
                "shadow_hits": self._shadow_hits,
                "misses": self._misses,
                "hit_rate": self._hits / lookups if lookups else 0.0,
                "rejected": dict(self._rejected),
                "puts": self._puts,
                "removed": dict(self._removed),
                "cost_saved": self._cost_saved,
                "lookup_seconds_sum": self._nanoseconds * 1e-9,
                "lookup_seconds": {
                    (1 << i) * 1e-9: self._histogram[i] for i in range(min(used, 8), used + 1)
                },
                "device": device,
                "device_rows": device_rows,
                "device_searches": device_searches,
                "device_failures": device_failures,
            }


class CacheCollector:
    """A Prometheus collector over the ``stats()`` of one cache; give it to ``REGISTRY.register``.

    Made by ``SmartCache.prometheus_collector``. Needs ``prometheus-client``.
    """

    def __init__(self, stats: Callable[[], CacheStats], name: str) -> None:
        if not isinstance(name, str):
            raise TypeError(f"name must be a string, got {type(name).__name__}")
        self._prometheus = prometheus_module()
        self._stats = stats
        self._name = name

    def describe(self) -> Iterator[Any]:
        """Return nothing, so that a registry takes several; their families are then repeated."""
        return iter(())

    def collect(self) -> Iterator[Any]:
        """Yield the metric families; called by the registry at each scrape."""
        stats = self._stats()
        core, label = self._prometheus, [self._name]
        for key, text in (
            ("entries", "Entries in the cache"),
            ("contexts", "Contexts with entries"),
            ("bytes", "Bytes the entries count for"),
            ("device_rows", "Rows that a device has a copy of"),
        ):
            gauge = core.GaugeMetricFamily(f"aimo_cache_{key}", text, labels=["cache"])
            gauge.add_metric(label, stats[key])  # type: ignore[literal-required]
            yield gauge
        for key, text in (
            ("hits", "Lookups that answered"),
            ("exact_hits", "Hits by the same text"),
            ("unguarded_hits", "Hits that no guard could check"),
            ("shadow_hits", "Answers kept back in shadow mode"),
            ("misses", "Lookups that answered nothing"),
            ("puts", "Entries stored"),
            ("device_searches", "Searches that a device helped"),
            ("device_failures", "Calls of a device that failed, so that the CPU searched"),
            ("cost_saved", "Sum of the cost of the entries that were hit"),
        ):
            counter = core.CounterMetricFamily(f"aimo_cache_{key}", text, labels=["cache"])
            counter.add_metric(label, stats[key])  # type: ignore[literal-required]
            yield counter
        for key, text in (
            ("rejected", "Candidates that a guard refused"),
            ("removed", "Entries that left"),
        ):
            counter = core.CounterMetricFamily(
                f"aimo_cache_{key}", text, labels=["cache", "reason"]
            )
            for reason, count in stats[key].items():  # type: ignore[literal-required]
                counter.add_metric([*label, reason], count)
            yield counter
        yield self._histogram(stats, label)

    def _histogram(self, stats: CacheStats, label: list[str]) -> Any:
        family = self._prometheus.HistogramMetricFamily(
            "aimo_cache_lookup_seconds", "Duration of lookups", labels=["cache"]
        )
        buckets, total = [], 0
        for bound, count in stats["lookup_seconds"].items():
            total += count
            buckets.append((repr(bound), total))
        family.add_metric(label, [*buckets, ("+Inf", total)], stats["lookup_seconds_sum"])
        return family
