"""The older interface to a cache of answers by text and by meaning."""

from __future__ import annotations

import threading
from typing import Any

from ..cache import SmartCache, normalize_text
from ..cache.contexts import Context, context_key
from ..cache.values import decode_value, encode_value
from ..content.answers import ExactAnswers
from .metrics import MIB, ModelPerformanceMetrics


class SemanticCache:
    """Answers by text and by meaning, over a `SmartCache`; answers never cross contexts.

    Parameters
    ----------
    max_size : maximum number of answers
    similarity_threshold : cosine from which a similar question's answer is returned
    ttl : seconds that an answer lives; None for no limit
    """

    def __init__(
        self,
        max_size: int = 1000,
        similarity_threshold: float = 0.85,
        ttl: float | None = 3600,
    ) -> None:
        self.max_size = max_size
        self.ttl = ttl
        self.cache = SmartCache(capacity=max_size, threshold=similarity_threshold, ttl=ttl)
        self._exact = ExactAnswers(max_size, ttl)
        self._lock = threading.Lock()
        self.metrics = ModelPerformanceMetrics()

    @property
    def similarity_threshold(self) -> float:
        """The cosine from which a similar question's answer is returned."""
        return self.cache.threshold

    @similarity_threshold.setter
    def similarity_threshold(self, value: float) -> None:
        self.cache.threshold = value

    def get_cached_response(
        self, query: str, query_embedding: Any = None, context: Context = ""
    ) -> tuple[Any, str, float] | None:
        """Return (response, source, similarity) of the same or a similar question, or None.

        Without an embedding only the same text is found, with similarity 1.0.

        Raises
        ------
        SpaceMismatchError
            If the embedding is known to come from another model than the stored ones.
        TypeError, ValueError
            If an argument is of the wrong kind.
        """
        key, text = self._names(query, context)
        found = self._exact.get(key, text) if text else None
        answer: tuple[Any, str, float] | None = None
        if found is not None:
            answer = (decode_value(found[0], None), found[1], 1.0)
        elif text and query_embedding is not None and len(query_embedding):
            hit = self.cache.get_semantic_similar(query_embedding, None, context, query)
            if hit is not None:
                answer = (hit.value, hit.source or "", hit.similarity)
        with self._lock:
            self.metrics.total_requests += 1
            self.metrics.cache_hits += answer is not None
            self.metrics.cache_misses += answer is None
        return answer

    def cache_response(
        self,
        query: str,
        response: Any,
        query_embedding: Any = None,
        context: Context = "",
        source: str = "ai_model",
    ) -> None:
        """Store an answer: bytes, str or JSON. The answer to a blank question is not stored.

        With an embedding it is found by meaning as well; an empty embedding counts as none.
        """
        key, text = self._names(query, context)
        value = encode_value(response, None)
        if not text:
            return
        if query_embedding is not None and len(query_embedding):
            self.cache.put(query_embedding, response, query=query, context=context, source=source)
        self._exact.put(key, text, (value, source))
        with self._lock:
            self.metrics.sets += 1

    def get_cache_statistics(self) -> dict[str, Any]:
        """Return sizes, settings and counts; ``hit_rate`` is from 0 to 1."""
        held = self.cache.stats()
        with self._lock:
            metrics = self.metrics
            return {
                "exact_cache_size": len(self._exact),
                "semantic_cache_size": held["entries"],
                "max_size": self.max_size,
                "similarity_threshold": self.similarity_threshold,
                "ttl_seconds": self.ttl,
                "hit_rate": metrics.cache_hit_rate / 100.0,
                "total_hits": metrics.cache_hits,
                "total_misses": metrics.cache_misses,
                "total_sets": metrics.sets,
                "memory_estimate_mb": (held["bytes"] + self._exact.bytes) / MIB,
            }

    def clear_cache(self) -> None:
        """Forget every answer; the counts stay."""
        self.cache.clear()
        self._exact.clear()

    @staticmethod
    def _names(query: str, context: Context) -> tuple[Any, str]:
        if not isinstance(query, str):
            raise TypeError(f"query: expected str, got {type(query).__name__}")
        return context_key(context), normalize_text(query)
