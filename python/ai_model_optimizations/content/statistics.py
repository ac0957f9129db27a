"""What a manager counts; one request is one answer, wherever it came from."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from typing import Any, Literal

from ..embedding.metrics import Histogram

logger = logging.getLogger("ai_model_optimizations")

Origin = Literal["exact", "semantic", "quick", "plain"]
_SECONDS = tuple(1e-6 * 1.5**i for i in range(44))  # 1 us to 37 s


class Statistics:
    """Counters of one manager; every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._origins: Counter[Origin] = Counter()
        self._fallbacks: Counter[str] = Counter()
        self._logged: set[str] = set()
        self._batches = 0
        self._errors = 0
        self._bypassed = 0
        self._duration = Histogram(_SECONDS)

    def answered(self, origin: Origin, seconds: float) -> None:
        """Count a request and where its answer came from."""
        with self._lock:
            self._origins[origin] += 1
            self._duration.observe(seconds)

    def bypassed(self) -> None:
        """Count a request that went to the plain manager because optimizations are off."""
        with self._lock:
            self._bypassed += 1

    def failed(self) -> None:
        """Count a request whose plain manager raised."""
        with self._lock:
            self._errors += 1

    def batch(self) -> None:
        """Count a call of `process_batch_queries`."""
        with self._lock:
            self._batches += 1

    def fallback(self, reason: str, error: BaseException | None = None) -> None:
        """Count an optimization that failed; the first of each kind is logged with traceback."""
        with self._lock:
            self._fallbacks[reason] += 1
            first = error is not None and reason not in self._logged
            self._logged.add(reason)
        if first:
            logger.warning(
                "an optimization failed (%s); the plain answer is given, further ones are counted",
                reason,
                exc_info=error,
            )

    def snapshot(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        with self._lock:
            exact, semantic = self._origins["exact"], self._origins["semantic"]
            queries = sum(self._origins.values()) + self._errors
            duration = self._duration.summary()
            return {
                "optimized_queries": queries,
                "cache_hits": exact + semantic,
                "exact_hits": exact,
                "semantic_hits": semantic,
                "keyword_answers": self._origins["quick"],
                "plain_answers": self._origins["plain"],
                "plain_errors": self._errors,
                "bypassed_queries": self._bypassed,
                "batch_queries": self._batches,
                "fallbacks": dict(self._fallbacks),
                "fallback_count": sum(self._fallbacks.values()),
                "hit_rate": (exact + semantic) / queries if queries else 0.0,
                "average_response_time": duration["mean"],
                "response_seconds": duration,
            }
