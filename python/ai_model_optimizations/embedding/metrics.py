"""Counters and histograms of the batch processor, as a dict and for Prometheus.

The Prometheus names are those of text-embeddings-inference with the prefix ``aimo_``, so that a
dashboard made for it needs one replacement.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from prometheus_client import Metric

Failure = Literal["overloaded", "validation", "inference", "timeout", "cancelled", "closed"]
FAILURES: Final[tuple[Failure, ...]] = (
    "overloaded",
    "validation",
    "inference",
    "timeout",
    "cancelled",
    "closed",
)
_SECONDS = tuple(0.0001 * 1.5**i for i in range(34))  # 0.1 ms to 65 s
_COUNTS = tuple(float(2**i) for i in range(17))  # 1 to 65,536
_MOST_UNCOUNTED: Final = 512  # events


class Histogram:
    """Counts of observations below fixed bounds; the owner holds a lock around every method."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # the last one is everything above
        self.total = 0.0

    @property
    def count(self) -> int:
        """How many observations there were."""
        return sum(self.counts)

    def observe(self, value: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def quantile(self, q: float) -> float:
        """Estimate the q-quantile by interpolation inside its bucket; 0 without observations."""
        rank = q * self.count
        below = 0
        for i, count in enumerate(self.counts):
            if count and below + count >= rank:
                low = self.bounds[i - 1] if i else 0.0
                high = self.bounds[i] if i < len(self.bounds) else low
                return low + (high - low) * (rank - below) / count
            below += count
        return 0.0

    def cumulative(self) -> list[tuple[str, float]]:
        """Return (upper bound, observations up to it) pairs in Prometheus' form."""
        pairs: list[tuple[str, float]] = []
        below = 0
        for bound, count in zip(self.bounds, self.counts[:-1], strict=True):
            below += count
            pairs.append((str(float(f"{bound:.6g}")), float(below)))
        pairs.append(("+Inf", float(below + self.counts[-1])))
        return pairs

    def summary(self) -> dict[str, float]:
        """Return count, mean, p50, p95 and p99."""
        count = self.count
        return {
            "count": count,
            "mean": self.total / count if count else 0.0,
            "p50": self.quantile(0.50),
            "p95": self.quantile(0.95),
            "p99": self.quantile(0.99),
        }


class BatchMetrics:
    """What a processor has done since it started.

    An event is only noted when it happens and counted later, when the metrics are read or too many
    are noted: a caller waits for every microsecond of Python before its vector arrives, and Python
    is slower still after a model has evicted everything from the CPU's caches.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._uncounted: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._requests = 0
        self._successes = 0
        self._failures: dict[Failure, int] = dict.fromkeys(FAILURES, 0)
        self._batches = 0
        self._texts = 0
        self._tokens = 0
        self._busy_seconds = 0.0
        self._deduplicated = 0
        self._undelivered = 0
        self._replaced_workers = 0
        self._duration = Histogram(_SECONDS)
        self._queue_duration = Histogram(_SECONDS)
        self._inference_duration = Histogram(_SECONDS)
        self._batch_texts = Histogram(_COUNTS)
        self._batch_tokens = Histogram(_COUNTS)

    def accepted(self, joined: int) -> None:
        """One call was queued; `joined` of its texts were already in flight."""
        self._note(self._count_accepted, joined)

    def served_from_cache(self) -> None:
        """One call needed no model."""
        self._note(self._count_served_from_cache)

    def refused(self, kind: Failure) -> None:
        """One call failed before it was queued."""
        self._note(self._count_refused, kind)

    def failed(self, kind: Failure, calls: int = 1) -> None:
        """Calls that had been queued ended without an answer."""
        self._note(self._count_failed, kind, calls)

    def ran(self, texts: int, tokens: int, seconds: float) -> None:
        """One batch went through the model."""
        self._note(self._count_batch, texts, tokens, seconds)

    def answered(self, waits: Sequence[tuple[float, float]]) -> None:
        """Calls got their vectors; (seconds in the queue, seconds in all) for each."""
        self._note(self._count_answered, waits)

    def undelivered(self, calls: int) -> None:
        """Calls were done after their event loop had closed."""
        self._note(self._count_undelivered, calls)

    def replaced_worker(self) -> None:
        """A worker thread was abandoned because the model hung."""
        self._note(self._count_replaced_worker)

    def snapshot(self) -> dict[str, Any]:
        """Return everything as plain numbers in plain dicts, ready for JSON."""
        with self._lock:
            self._count()
            busy = self._busy_seconds
            return {
                "requests": self._requests,
                "successes": self._successes,
                "failures": dict(self._failures),
                "undelivered": self._undelivered,
                "deduplicated_texts": self._deduplicated,
                "replaced_workers": self._replaced_workers,
                "batches": self._batches,
                "texts": self._texts,
                "tokens": self._tokens,
                "busy_seconds": busy,
                "texts_per_second": self._texts / busy if busy else 0.0,
                "tokens_per_second": self._tokens / busy if busy else 0.0,
                "request_seconds": self._duration.summary(),
                "queue_seconds": self._queue_duration.summary(),
                "inference_seconds": self._inference_duration.summary(),
                "batch_texts": self._batch_texts.summary(),
                "batch_tokens": self._batch_tokens.summary(),
            }

    def prometheus(
        self, gauges: Mapping[str, tuple[str, float]], labels: Mapping[str, str]
    ) -> Iterable[Metric]:
        """Build the Prometheus families; `gauges` maps a name to (help, value)."""
        from prometheus_client import core

        names, values = list(labels), list(labels.values())
        families: list[Metric] = []

        def counter(name: str, text: str, value: float) -> None:
            family = core.CounterMetricFamily(f"aimo_{name}", text, labels=names)
            family.add_metric(values, value)
            families.append(family)

        def histogram(name: str, text: str, of: Histogram) -> None:
            family = core.HistogramMetricFamily(f"aimo_{name}", text, labels=names)
            family.add_metric(values, of.cumulative(), of.total)
            families.append(family)

        for name, (text, value) in gauges.items():
            gauge = core.GaugeMetricFamily(f"aimo_{name}", text, labels=names)
            gauge.add_metric(values, value)
            families.append(gauge)
        with self._lock:
            self._count()
            counter("request_count", "Calls received", self._requests)
            counter("request_success", "Calls answered with vectors", self._successes)
            failure = core.CounterMetricFamily(
                "aimo_request_failure", "Calls that failed, by kind", labels=[*names, "err"]
            )
            for kind, count in self._failures.items():
                failure.add_metric([*values, kind], count)
            families.append(failure)
            counter("embed_count", "Texts that went through the model", self._texts)
            counter("embed_tokens", "Tokens that went through the model", self._tokens)
            counter("embed_deduplicated", "Texts that joined an equal one", self._deduplicated)
            counter("batch_busy_seconds", "Seconds inside the model", self._busy_seconds)
            counter("worker_replaced", "Workers given up, model hung", self._replaced_workers)
            histogram("request_duration", "Seconds from call to answer", self._duration)
            histogram("request_queue_duration", "Seconds in the queue", self._queue_duration)
            histogram("request_inference_duration", "Seconds of a batch", self._inference_duration)
            histogram("batch_next_size", "Texts in a batch", self._batch_texts)
            histogram("batch_next_tokens", "Tokens in a batch", self._batch_tokens)
        return families

    # ---- events, counted ----

    def _note(self, count: Callable[..., None], *what: Any) -> None:
        self._uncounted.append((count, what))
        if len(self._uncounted) > _MOST_UNCOUNTED:
            with self._lock:
                self._count()

    def _count(self) -> None:
        """Count the noted events; the lock must be held, as for all methods below."""
        while self._uncounted:
            count, what = self._uncounted.popleft()
            count(*what)

    def _count_accepted(self, joined: int) -> None:
        self._requests += 1
        self._deduplicated += joined

    def _count_served_from_cache(self) -> None:
        self._requests += 1
        self._successes += 1
        self._duration.observe(0.0)

    def _count_refused(self, kind: Failure) -> None:
        self._requests += 1
        self._failures[kind] += 1

    def _count_failed(self, kind: Failure, calls: int) -> None:
        self._failures[kind] += calls

    def _count_batch(self, texts: int, tokens: int, seconds: float) -> None:
        self._batches += 1
        self._texts += texts
        self._tokens += tokens
        self._busy_seconds += seconds
        self._inference_duration.observe(seconds)
        self._batch_texts.observe(texts)
        self._batch_tokens.observe(tokens)

    def _count_answered(self, waits: Sequence[tuple[float, float]]) -> None:
        self._successes += len(waits)
        for queued, total in waits:
            self._queue_duration.observe(queued)
            self._duration.observe(total)

    def _count_undelivered(self, calls: int) -> None:
        self._undelivered += calls

    def _count_replaced_worker(self) -> None:
        self._replaced_workers += 1


class PrometheusCollector:
    """Gives a processor's metrics to ``prometheus_client`` at each scrape."""

    def __init__(self, families: Callable[[], Iterable[Metric]]) -> None:
        self._families = families

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that a registry takes several; their families are then repeated."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Return the families; called by a Prometheus registry."""
        return self._families()
