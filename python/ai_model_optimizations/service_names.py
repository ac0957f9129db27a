"""The names that older services import, as thin adapters over the package's own parts.

Nothing here does the work: vectors come from `BatchEmbeddingProcessor`, answers from `SmartCache`,
smaller models from `ModelQuantizer`. docs/migration.md says what behaves differently, and why.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from .cache import SmartCache, normalize_text
from .cache.contexts import Context, context_key
from .cache.values import decode_value, encode_value
from .content.answers import ExactAnswers
from .content.lane import Lane
from .content.model_slots import (
    SENTENCE_SLOTS,
    SLOTS,
    QuantizingSlots,
    loaded_models,
    model_bytes,
)
from .embedding import BatchEmbeddingProcessor as _Processor
from .embedding import Embedding
from .embedding.engine import Engine, load_by_name
from .embedding.request_queue import Priority
from .embedding.vector_cache import VectorCache
from .memory_monitor.monitor import shared_monitor
from .quantization import ModelQuantizer
from .selection.language import detect_language

__all__ = [
    "AdaptiveModelManager",
    "BatchEmbeddingProcessor",
    "ModelPerformanceMetrics",
    "OptimizedAIManager",
    "SemanticCache",
    "clear_all_caches",
    "generate_optimized_embedding",
    "generate_optimized_embeddings_batch",
    "get_optimization_stats",
    "get_optimized_ai_manager",
    "optimize_loaded_models",
    "optimize_model_memory",
]

logger = logging.getLogger("ai_model_optimizations")

ModelType = Literal["light", "heavy"]
_MIB: Final = 2**20
_VECTOR_CACHE_BYTES: Final = 32 * _MIB


@dataclass
class ModelPerformanceMetrics:
    """Counts of one part; seconds, MiB, and requests per second of processing.

    ``vars(metrics)`` is a dict of plain numbers.
    """

    total_requests: int = 0
    total_processing_time: float = 0.0
    cache_hits: int = 0
    cache_misses: int = 0
    sets: int = 0
    memory_usage_mb: float = 0.0
    average_response_time: float = 0.0
    throughput_per_second: float = 0.0

    @property
    def cache_hit_rate(self) -> float:
        """Hits in percent of all look-ups; 0 before the first."""
        lookups = self.cache_hits + self.cache_misses
        return 100.0 * self.cache_hits / lookups if lookups else 0.0

    def observe(self, seconds: float, requests: int = 1) -> None:
        """Count requests that took `seconds` together."""
        self.total_requests += requests
        self.total_processing_time += seconds
        self.average_response_time = self.total_processing_time / self.total_requests
        if self.total_processing_time > 0:
            self.throughput_per_second = self.total_requests / self.total_processing_time


class BatchEmbeddingProcessor(_Processor):
    """`embedding.BatchEmbeddingProcessor` with the methods of the older one.

    Same arguments; see there.
    """

    @functools.cached_property
    def _others(self) -> ModelPerformanceMetrics:
        """Of calls with a model of their own."""
        return ModelPerformanceMetrics()

    @functools.cached_property
    def _lane(self) -> Lane:
        return Lane("aimo-batch-other-model")

    async def process_batch_embeddings(
        self, texts: Sequence[str], model: Any = None, priority: Priority = "normal"
    ) -> list[Embedding]:
        """Embed `texts` with `model`, or with the processor's own when it is None.

        Returns
        -------
        one list of floats per text, which carries the model's ``space_id``

        Raises
        ------
        TypeError, ValueError, TimeoutError, Exception
            As `process_batch`; an error fails the call, so no text goes without a vector unseen.
        """
        self._check_priority(priority)
        checked = self._as_list(texts)
        self._check_texts(checked, 0)
        if model is None:
            vectors = await self.process_batch(checked, priority=priority)
            return [Embedding.from_array(row, self.space_id) for row in vectors]
        if not checked:
            return []
        # Not one more processor: it would keep a model alive that its manager wants to unload.
        engine = Engine(model)
        began = time.perf_counter()
        future = self._lane.submit(lambda: self._encode_with(engine, checked))
        try:
            rows = await asyncio.wait_for(asyncio.wrap_future(future), self.timeout)
        except asyncio.TimeoutError:
            raise TimeoutError(f"no vectors for {self.timeout} s") from None
        self._others.observe(time.perf_counter() - began, len(checked))
        return [Embedding.from_array(row, engine.space_id) for row in rows]

    def _encode_with(self, engine: Engine, texts: list[str]) -> NDArray[np.float32]:
        starts = range(0, len(texts), self.batch_size)
        rows = np.concatenate([engine.encode(texts[i : i + self.batch_size]) for i in starts])
        if not np.isfinite(rows).all():
            raise ValueError("the model returned NaN or infinity")
        return rows

    @property
    def performance_metrics(self) -> ModelPerformanceMetrics:
        """The figures of now; a copy."""
        own, cache = self.metrics(), self.metrics()["cache"]
        found = ModelPerformanceMetrics(**asdict(self._others))
        found.observe(own["busy_seconds"], own["requests"])
        found.cache_hits, found.cache_misses = cache["hits"], cache["misses"]
        found.sets = cache["entries"]
        found.memory_usage_mb = cache["bytes"] / _MIB
        return found


class AdaptiveModelManager:
    """Chooses between a model manager's light and heavy sentence model; loads neither to choose.

    Parameters
    ----------
    model_manager : has ``english_sentence_model`` (light) and ``turkish_sentence_model`` (heavy),
        or one of them
    """

    def __init__(self, model_manager: Any = None) -> None:
        self.model_manager = model_manager
        self.model_performance: dict[str, ModelPerformanceMetrics] = {
            "light": ModelPerformanceMetrics(),
            "heavy": ModelPerformanceMetrics(),
        }

    def select_optimal_model(
        self,
        query: str,
        response_time_requirement: float = 1000,
        quality_priority: bool = False,
    ) -> ModelType:
        """Return "heavy" for Turkish or with `quality_priority`, if it is quick enough.

        Parameters
        ----------
        query : the text
        response_time_requirement : milliseconds; compared with what the heavy model has taken
        quality_priority : prefer the better model
        """
        if not isinstance(query, str):
            raise TypeError(f"query: expected str, got {type(query).__name__}")
        if not (quality_priority or detect_language(query) == "tr"):
            return "light"
        taken = self.model_performance["heavy"].average_response_time * 1e3
        return "heavy" if taken <= response_time_requirement else "light"

    def get_model_for_query(self, query: str, **kwargs: Any) -> Any:
        """Return the chosen model, loaded by its manager; the other one when there is none."""
        first = self.select_optimal_model(query, **kwargs)
        return self.model_of_type(first)

    def model_of_type(self, model_type: ModelType) -> Any:
        """The manager's model of a type, or its other one; None without any."""
        names = list(SENTENCE_SLOTS.values())
        for name in names if model_type == "light" else reversed(names):
            model = getattr(self.model_manager, name, None)
            if model is not None:
                return model
        return None

    def update_performance_metrics(
        self, model_type: str, processing_time: float, memory_usage: float
    ) -> None:
        """Take note of what a request took: seconds, and the model's MiB."""
        if model_type not in self.model_performance:
            raise ValueError(f'model_type: expected "light" or "heavy", got {model_type!r}')
        metrics = self.model_performance[model_type]
        metrics.observe(processing_time)
        metrics.memory_usage_mb = memory_usage


class SemanticCache:
    """Answers by text and by meaning, over a `SmartCache`; a context is a wall.

    Parameters
    ----------
    max_size : most answers
    similarity_threshold : cosine from which another question's answer is given
    ttl : seconds that an answer lives; None for ever
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
        """The cosine from which another question's answer is given."""
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
            If the embedding says that it comes from another model than the stored ones.
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
        """Keep an answer: bytes, str or JSON. A blank question's is not kept.

        With an embedding it is found by meaning as well; an empty one counts as none.
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
        """Return sizes, settings and counts; ``hit_rate`` is a share from 0 to 1."""
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
                "memory_estimate_mb": (held["bytes"] + self._exact.bytes) / _MIB,
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


class _PinnedModel:
    """The one model that an `OptimizedAIManager` embeds with, asked for anew at each call.

    The first text chooses it, and it stays: vectors of two models must not meet. Asking the model
    manager each time lets it unload the model and load it again.
    """

    def __init__(self, adaptive: AdaptiveModelManager) -> None:
        self._adaptive = adaptive
        self.model_type: ModelType | None = None
        self._default: Any = None
        self.space_id: str | None = None

    def choose(self, text: str, quality_priority: bool) -> None:
        """Pin the model, if none is pinned yet."""
        if self.model_type is None:
            self.model_type = self._adaptive.select_optimal_model(
                text, quality_priority=quality_priority
            )

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        """Embed `texts`; called in the batch processor's thread."""
        began = time.perf_counter()
        pinned = self.model_type or "light"
        model = self._adaptive.model_of_type(pinned)
        if model is None and hasattr(self._adaptive.model_manager, "generate_embedding"):
            generate = self._adaptive.model_manager.generate_embedding
            return np.array([generate(text) for text in texts], dtype=np.float32)
        if model is None:
            model = self._default = self._default or load_by_name()
        engine = Engine(model)
        self._check_space(engine.space_id)
        rows = engine.encode(texts)
        taken = (time.perf_counter() - began) / len(texts)
        self._adaptive.update_performance_metrics(pinned, taken, model_bytes(model) / _MIB)
        return rows

    def _check_space(self, space_id: str | None) -> None:
        if space_id is not None and self.space_id not in (None, space_id):
            raise ValueError(
                f"the model manager's model changed from the space {self.space_id!r} to "
                f"{space_id!r}; clear_all_caches() begins anew"
            )
        self.space_id = space_id or self.space_id


class OptimizedAIManager:
    """Embeddings in batches, cached answers and smaller models for an older model manager.

    Parameters
    ----------
    model_manager : has the properties ``english_sentence_model`` and ``turkish_sentence_model``,
        or ``generate_embedding(text)``; the package's default model is used when None
    """

    def __init__(self, model_manager: Any = None) -> None:
        self._slots = QuantizingSlots(ModelQuantizer())
        self.semantic_cache = SemanticCache()
        self.global_metrics = ModelPerformanceMetrics()
        self._lock = threading.Lock()
        self._failures = 0
        self._begin_with(model_manager)

    def _begin_with(self, model_manager: Any) -> None:
        self.adaptive_manager = AdaptiveModelManager(model_manager)
        self._pinned = _PinnedModel(self.adaptive_manager)
        self.batch_processor = BatchEmbeddingProcessor(model=self._pinned, cache_mb=0)
        self._vectors = VectorCache(_VECTOR_CACHE_BYTES)

    @property
    def quantizer(self) -> Any:
        """What makes models smaller."""
        return self._slots.quantizer

    @quantizer.setter
    def quantizer(self, quantizer: Any) -> None:
        self._slots.quantizer = quantizer

    @property
    def model_manager(self) -> Any:
        """Where models come from; setting another one begins with empty caches."""
        return self.adaptive_manager.model_manager

    @model_manager.setter
    def model_manager(self, manager: Any) -> None:
        if manager is not self.model_manager:
            old = self.batch_processor
            self._begin_with(manager)
            self.semantic_cache.clear_cache()
            threading.Thread(target=old.close, name="aimo-batch-close", daemon=True).start()

    # ---- embedding ----

    async def generate_optimized_embedding(
        self, text: str, use_cache: bool = True, quality_priority: bool = False
    ) -> Embedding:
        """Embed one text; an empty, false list when the text is blank or the model fails.

        The manager's first text chooses its model, by language and `quality_priority`.
        """
        return (await self._generate([text], use_cache, quality_priority))[0]

    async def generate_optimized_embeddings_batch(
        self, texts: Sequence[str], use_cache: bool = True
    ) -> list[Embedding]:
        """Embed texts as one batch, in their order; see `generate_optimized_embedding`."""
        return await self._generate(texts, use_cache, False)

    async def _generate(
        self, texts: Sequence[str], use_cache: bool, quality_priority: bool
    ) -> list[Embedding]:
        checked = self.batch_processor._as_list(texts)
        self.batch_processor._check_texts(checked, 0)
        began = time.perf_counter()
        pinned, cache = self._pinned, self._vectors
        wanted = [text for text in dict.fromkeys(checked) if text.strip()]
        found: dict[str, NDArray[np.float32]] = {}
        if use_cache:
            known = cache.get_many(wanted)
            found = {t: row for t, row in zip(wanted, known, strict=True) if row is not None}
        missing = [text for text in wanted if text not in found]
        if missing:
            pinned.choose(missing[0], quality_priority)
            rows = await self._embed(missing)
            if rows is not None:
                found.update(zip(missing, rows, strict=True))
                if use_cache:
                    cache.put_many(missing, rows)
        with self._lock:
            metrics = self.global_metrics
            metrics.observe(time.perf_counter() - began, len(checked))
            if use_cache:
                metrics.cache_hits += len(wanted) - len(missing)
                metrics.cache_misses += len(missing)
                metrics.sets += len(found) + len(missing) - len(wanted)
        empty = Embedding((), pinned.space_id)
        return [
            Embedding.from_array(found[text], pinned.space_id) if text in found else empty
            for text in checked
        ]

    async def _embed(self, texts: list[str]) -> NDArray[np.float32] | None:
        try:
            rows = await self.batch_processor.process_batch(texts)
            if not rows.any(axis=1).all():
                raise ValueError("the model returned a vector of zeros")
        except Exception as error:
            with self._lock:
                self._failures += 1
                first = self._failures == 1
            if first:
                logger.warning("embedding failed; further ones are counted", exc_info=error)
            return None
        return rows

    # ---- memory and state ----

    def optimize_model_memory(self, force_optimization: bool = False) -> dict[str, Any]:
        """Quantize the manager's loaded models, and have later ones quantized when they load.

        Loads nothing. A model that cannot be quantized stays as it is.

        Parameters
        ----------
        force_optimization : try those again that could not be quantized

        Returns
        -------
        ``optimized_models``, ``skipped_models`` (why), ``waiting_models`` (not loaded),
        ``memory_before_mb``, ``memory_after_mb``, ``memory_saved_mb``: the models' weights
        """
        manager = self.model_manager
        before = sum(map(model_bytes, loaded_models(manager).values()))
        replaced = self._slots.watch(manager, again=force_optimization)
        if replaced:
            _clear_cached_embeddings(manager)
        loaded = loaded_models(manager)
        after = sum(map(model_bytes, loaded.values()))
        return {
            "optimized_models": [name for name in loaded if self._slots.has_made(loaded[name])],
            "skipped_models": self._slots.refusals(manager),
            "waiting_models": [n for n in SLOTS if hasattr(manager, n) and n not in loaded],
            "memory_before_mb": before / _MIB,
            "memory_after_mb": after / _MIB,
            "memory_saved_mb": (before - after) / _MIB,
        }

    def get_optimization_statistics(self) -> dict[str, Any]:
        """Return every part's figures as plain numbers in nested dicts."""
        performance = self.adaptive_manager.model_performance
        hits, misses = self.global_metrics.cache_hits, self.global_metrics.cache_misses
        return {
            "global_metrics": {
                **vars(self.global_metrics),
                "cache_hit_rate": self.global_metrics.cache_hit_rate,
            },
            "embedding_cache_stats": {
                "entries": len(self._vectors),
                "memory_mb": self._vectors.bytes / _MIB,
                "hits": hits,
                "misses": misses,
            },
            "embedding_failures": self._failures,
            "batch_processor_stats": vars(self.batch_processor.performance_metrics),
            "semantic_cache_stats": self.semantic_cache.get_cache_statistics(),
            "model_performance": {name: vars(found) for name, found in performance.items()},
            "quantized_models": self._slots.made,
            "memory_mb": shared_monitor().get_stats()["current_memory_mb"],
        }

    def clear_all_caches(self) -> None:
        """Forget answers and vectors, the model manager's too, and which model was chosen."""
        self.semantic_cache.clear_cache()
        self._vectors.clear()
        self.batch_processor.clear_cache()
        self._pinned.model_type = self._pinned.space_id = None
        _clear_cached_embeddings(self.model_manager)


def _clear_cached_embeddings(model_manager: Any) -> None:
    """Empty the ``lru_cache`` around a manager's ``generate_embedding``, where there is one."""
    clear = getattr(getattr(model_manager, "generate_embedding", None), "cache_clear", None)
    if callable(clear):
        clear()


# ---- module functions over the one global manager ----

_one_lock = threading.Lock()
_one: OptimizedAIManager | None = None


def _renew_lock() -> None:
    global _one_lock
    _one_lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def get_optimized_ai_manager(model_manager: Any = None) -> OptimizedAIManager:
    """Return the process's one manager; a `model_manager` that is given becomes its own."""
    global _one
    with _one_lock:
        if _one is None:
            _one = OptimizedAIManager(model_manager)
        elif model_manager is not None:
            _one.model_manager = model_manager
        return _one


async def generate_optimized_embedding(
    text: str, model_manager: Any = None, **kwargs: Any
) -> Embedding:
    """`OptimizedAIManager.generate_optimized_embedding` of the one manager."""
    return await get_optimized_ai_manager(model_manager).generate_optimized_embedding(
        text, **kwargs
    )


async def generate_optimized_embeddings_batch(
    texts: Sequence[str], model_manager: Any = None, **kwargs: Any
) -> list[Embedding]:
    """`OptimizedAIManager.generate_optimized_embeddings_batch` of the one manager."""
    return await get_optimized_ai_manager(model_manager).generate_optimized_embeddings_batch(
        texts, **kwargs
    )


def optimize_model_memory(model_manager: Any = None, **kwargs: Any) -> dict[str, Any]:
    """`OptimizedAIManager.optimize_model_memory` of the one manager."""
    return get_optimized_ai_manager(model_manager).optimize_model_memory(**kwargs)


def optimize_loaded_models(model_manager: Any = None, **kwargs: Any) -> dict[str, Any]:
    """As `optimize_model_memory`."""
    return optimize_model_memory(model_manager, **kwargs)


def clear_all_caches(model_manager: Any = None) -> None:
    """`OptimizedAIManager.clear_all_caches` of the one manager."""
    get_optimized_ai_manager(model_manager).clear_all_caches()


def get_optimization_stats(model_manager: Any = None) -> dict[str, Any]:
    """`OptimizedAIManager.get_optimization_statistics` of the one manager."""
    return get_optimized_ai_manager(model_manager).get_optimization_statistics()
