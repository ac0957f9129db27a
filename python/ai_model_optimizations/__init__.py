"""Small, fast sentence embeddings, exact semantic caching and safe memory monitoring.

The public names are imported when they are first used: a service that only monitors its memory does
not pay for the rest.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from . import _core  # noqa: F401 - first, as it says clearly what numpy's import would not
from ._version import __version__
from .errors import (
    AimoError,
    CacheFileError,
    ClosedError,
    ContentFileError,
    DeviceError,
    ModelFormatError,
    NoSuitableModelError,
    PrecisionError,
    QueueFull,
    SpaceMismatchError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from . import half
    from .cache import Agreement, CacheHit, LabelledPair, SmartCache, TextGuard, context_of
    from .device_array import DeviceArray
    from .embedding import Embedding, EmbeddingModel
    from .memory_monitor import (
        MemoryLeakDetector,
        MemoryMonitor,
        MemoryTracker,
        get_memory_status,
        setup_memory_monitoring,
        track_memory,
    )
    from .optimized_content_manager import (
        OptimizedContentManager,
        OptimizedContentMixin,
        create_optimized_content_manager,
        find_optimized_response,
        process_batch_queries,
    )
    from .quantization import ModelQuantizer, QuantizationReport
    from .selection import AdaptiveModelSelector, Selection
    from .service_names import (
        AdaptiveModelManager,
        BatchEmbeddingProcessor,
        ModelPerformanceMetrics,
        OptimizedAIManager,
        SemanticCache,
        clear_all_caches,
        generate_optimized_embedding,
        generate_optimized_embeddings_batch,
        get_optimization_stats,
        get_optimized_ai_manager,
        optimize_loaded_models,
        optimize_model_memory,
    )

#: Where each name that is imported on first use is defined.
_HOMES = {
    "AdaptiveModelManager": ".service_names",
    "AdaptiveModelSelector": ".selection",
    "Agreement": ".cache",
    "BatchEmbeddingProcessor": ".service_names",
    "CacheHit": ".cache",
    "DeviceArray": ".device_array",
    "Embedding": ".embedding",
    "EmbeddingModel": ".embedding",
    "LabelledPair": ".cache",
    "MemoryLeakDetector": ".memory_monitor",
    "MemoryMonitor": ".memory_monitor",
    "MemoryTracker": ".memory_monitor",
    "ModelPerformanceMetrics": ".service_names",
    "ModelQuantizer": ".quantization",
    "OptimizedAIManager": ".service_names",
    "OptimizedContentManager": ".optimized_content_manager",
    "OptimizedContentMixin": ".optimized_content_manager",
    "QuantizationReport": ".quantization",
    "Selection": ".selection",
    "SemanticCache": ".service_names",
    "SmartCache": ".cache",
    "TextGuard": ".cache",
    "clear_all_caches": ".service_names",
    "context_of": ".cache",
    "create_optimized_content_manager": ".optimized_content_manager",
    "find_optimized_response": ".optimized_content_manager",
    "generate_optimized_embedding": ".service_names",
    "generate_optimized_embeddings_batch": ".service_names",
    "get_memory_status": ".memory_monitor",
    "get_optimization_stats": ".service_names",
    "get_optimized_ai_manager": ".service_names",
    "optimize_loaded_models": ".service_names",
    "optimize_model_memory": ".service_names",
    "process_batch_queries": ".optimized_content_manager",
    "setup_memory_monitoring": ".memory_monitor",
    "track_memory": ".memory_monitor",
}

#: Modules that are names of their own.
_MODULES = ("half",)

__all__ = [
    "AdaptiveModelManager",
    "AdaptiveModelSelector",
    "Agreement",
    "AimoError",
    "BatchEmbeddingProcessor",
    "CacheFileError",
    "CacheHit",
    "ClosedError",
    "ContentFileError",
    "DeviceArray",
    "DeviceError",
    "Embedding",
    "EmbeddingModel",
    "LabelledPair",
    "MemoryLeakDetector",
    "MemoryMonitor",
    "MemoryTracker",
    "ModelFormatError",
    "ModelPerformanceMetrics",
    "ModelQuantizer",
    "NoSuitableModelError",
    "OptimizedAIManager",
    "OptimizedContentManager",
    "OptimizedContentMixin",
    "PrecisionError",
    "QuantizationReport",
    "QueueFull",
    "Selection",
    "SemanticCache",
    "SmartCache",
    "SpaceMismatchError",
    "TextGuard",
    "UnsupportedError",
    "__version__",
    "clear_all_caches",
    "context_of",
    "create_optimized_content_manager",
    "find_optimized_response",
    "generate_optimized_embedding",
    "generate_optimized_embeddings_batch",
    "get_memory_status",
    "get_optimization_stats",
    "get_optimized_ai_manager",
    "half",
    "optimize_loaded_models",
    "optimize_model_memory",
    "process_batch_queries",
    "setup_memory_monitoring",
    "track_memory",
]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_MODULES})
