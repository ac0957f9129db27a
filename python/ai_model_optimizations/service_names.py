"""The names that older services import, as thin adapters over the package's own parts.

Nothing here does the work: vectors come from `BatchEmbeddingProcessor`, answers from `SmartCache`,
smaller models from `ModelQuantizer`. The classes are in the folder ``older``, the functions here
speak to the process's one manager. docs/migration.md says what behaves differently, and why.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

from .embedding import Embedding
from .older.answers import SemanticCache
from .older.batches import BatchEmbeddingProcessor
from .older.manager import OptimizedAIManager
from .older.metrics import ModelPerformanceMetrics
from .older.models import AdaptiveModelManager

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
