"""The older interface to embeddings, cached answers and quantization of a model manager."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..content.model_slots import SLOTS, QuantizingSlots, loaded_models, model_bytes
from ..embedding import Embedding
from ..embedding.vector_cache import VectorCache
from ..memory_monitor.monitor import shared_monitor
from ..quantization import ModelQuantizer
from .answers import SemanticCache
from .batches import BatchEmbeddingProcessor
from .metrics import MIB, ModelPerformanceMetrics
from .models import AdaptiveModelManager, PinnedModel

logger = logging.getLogger("ai_model_optimizations")

_VECTOR_CACHE_BYTES: Final = 32 * MIB


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
        self._pinned = PinnedModel(self.adaptive_manager)
        self.batch_processor = BatchEmbeddingProcessor(model=self._pinned, cache_mb=0)
        self._vectors = VectorCache(_VECTOR_CACHE_BYTES)

    @property
    def quantizer(self) -> Any:
        """The quantizer that makes models smaller."""
        return self._slots.quantizer

    @quantizer.setter
    def quantizer(self, quantizer: Any) -> None:
        self._slots.quantizer = quantizer

    @property
    def model_manager(self) -> Any:
        """The model manager; setting another one empties the caches."""
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
        """Embed one text; returns an empty list if the text is blank or the model fails.

        The manager's first text determines its model, by language and `quality_priority`.
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
        force_optimization : try again those that could not be quantized before

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
            "memory_before_mb": before / MIB,
            "memory_after_mb": after / MIB,
            "memory_saved_mb": (before - after) / MIB,
        }

    def get_optimization_statistics(self) -> dict[str, Any]:
        """Return every part's statistics as plain numbers in nested dicts."""
        performance = self.adaptive_manager.model_performance
        hits, misses = self.global_metrics.cache_hits, self.global_metrics.cache_misses
        return {
            "global_metrics": {
                **vars(self.global_metrics),
                "cache_hit_rate": self.global_metrics.cache_hit_rate,
            },
            "embedding_cache_stats": {
                "entries": len(self._vectors),
                "memory_mb": self._vectors.bytes / MIB,
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
        """Forget answers, vectors (the model manager's too) and the choice of model."""
        self.semantic_cache.clear_cache()
        self._vectors.clear()
        self.batch_processor.clear_cache()
        self._pinned.model_type = self._pinned.space_id = None
        _clear_cached_embeddings(self.model_manager)


def _clear_cached_embeddings(model_manager: Any) -> None:
    """Empty the ``lru_cache`` around a manager's ``generate_embedding``, if there is one."""
    clear = getattr(getattr(model_manager, "generate_embedding", None), "cache_clear", None)
    if callable(clear):
        clear()
