"""The methods that all forms of the optimized manager share."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from ..cache import SmartCache
from ..cache.contexts import Context
from ..memory_monitor.monitor import MemoryMonitor, shared_monitor
from .answers import Answer
from .engine import AnswerEngine


class Optimized:
    """The methods that all forms of the manager have, over one engine."""

    @property
    def _engine(self) -> AnswerEngine:
        raise NotImplementedError

    def _base_stats(self) -> dict[str, Any]:
        raise NotImplementedError

    # ---- answering ----

    async def find_response_optimized(
        self, user_message: str, quality_priority: bool = False, context: Context = ""
    ) -> Answer:
        """Answer a message without blocking the event loop.

        Parameters
        ----------
        user_message : the user's words
        quality_priority : compute the answer unless exactly this text has been answered before;
            answers to similar messages are not used
        context : whose answers may be given: a string or a tuple of strings and numbers, such as
            ``("user", 42)``. Answers never cross contexts; "" is shared by all.

        Returns
        -------
        (response, source)

        Raises
        ------
        TypeError
            If the message is not a string (and no wrapped manager accepts it), or the context is
            not valid.
        TimeoutError
            If the wrapped manager gives no answer in time.
        """
        return await self._engine.find_async(user_message, context, quality_priority)

    async def process_batch_queries(
        self, messages: Sequence[str], quality_priority: bool = False, context: Context = ""
    ) -> list[Answer]:
        """Answer messages of one context, in their order; those to be embedded form one batch.

        Raises
        ------
        TypeError
            If `messages` is not a sequence, and as `find_response_optimized`.
        """
        if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
            raise TypeError(
                f"messages: expected a sequence of strings, got {type(messages).__name__}"
            )
        return await self._engine.find_many(list(messages), context, quality_priority)

    # ---- state ----

    def toggle_optimizations(self, enabled: bool) -> None:
        """Turn the caches off, so that every message is answered afresh, or on again."""
        if not isinstance(enabled, bool):
            raise TypeError(f"enabled: expected a bool, got {type(enabled).__name__}")
        self._engine.enabled = enabled

    def clear_optimized_caches(self) -> None:
        """Forget every cached answer, including those of managers that share the caches."""
        self._engine.caches.clear()

    async def warmup(self) -> None:
        """Load the model, so that the first user does not wait for it."""
        await self._engine.embedder.processor.warmup()
        prepared = self._engine.plain.prepare()
        if prepared is not None:
            await asyncio.wrap_future(prepared)

    @property
    def semantic_cache(self) -> SmartCache:
        """The cache of answers by meaning, for `calibrate`, `invalidate`, `shadow_hits`, ...

        Clear it with `clear_optimized_caches`, which also forgets answers still being computed.
        """
        return self._engine.caches.semantic

    @property
    def memory_monitor(self) -> MemoryMonitor:
        """The process's one memory monitor."""
        return shared_monitor()

    def get_optimization_statistics(self) -> dict[str, Any]:
        """Return the counters as plain numbers in nested dicts.

        ``optimization_stats``: this manager's requests; a hit is counted once per request.
        ``ai_optimization_stats``: caches and batches, which managers may share; rates are from 0 to
        1. ``base_stats``: the wrapped manager's own statistics.
        """
        engine = self._engine
        own = engine.statistics.snapshot()
        semantic = dict(engine.caches.semantic.stats())
        semantic["lookup_hit_rate"] = semantic["hit_rate"]
        # A share of all requests: most repeats never reach the semantic cache.
        semantic["hit_rate"] = own["hit_rate"]
        semantic["similarity_threshold"] = engine.caches.semantic.threshold
        return {
            "optimization_stats": {"optimizations_enabled": engine.enabled, **own},
            "ai_optimization_stats": {
                "semantic_cache_stats": semantic,
                "exact_cache_stats": {
                    "entries": len(engine.caches.exact),
                    "bytes": engine.caches.exact.bytes,
                },
                "batch_stats": engine.embedder.processor.metrics(),
                "model_ready": engine.embedder.ready,
                "space_id": engine.embedder.space_id,
                "memory_mb": shared_monitor().get_stats()["current_memory_mb"],
            },
            "base_stats": self._base_stats(),
        }

    def get_stats(self) -> dict[str, Any]:
        """Return the plain manager's statistics, and ours under ``optimization_stats``."""
        statistics = self.get_optimization_statistics()
        return {**statistics["base_stats"], "optimization_stats": statistics["optimization_stats"]}
