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
    from .cache import CacheHit, LabelledPair, SmartCache, TextGuard, context_of
    from .embedding import BatchEmbeddingProcessor, Embedding, EmbeddingModel
    from .memory_monitor import (
        MemoryLeakDetector,
        MemoryMonitor,
        MemoryTracker,
        get_memory_status,
        setup_memory_monitoring,
        track_memory,
    )
    from .quantization import ModelQuantizer, QuantizationReport
    from .optimized_content_manager import (
        OptimizedContentManager,
        OptimizedContentMixin,
        create_optimized_content_manager,
        find_optimized_response,
        process_batch_queries,
    )
    from .quantization import ModelQuantizer
    from .selection import AdaptiveModelSelector, Selection

#: Where each name that is imported on first use is defined.
_HOMES = {
    "AdaptiveModelSelector": ".selection",
    "BatchEmbeddingProcessor": ".embedding",
    "CacheHit": ".cache",
    "Embedding": ".embedding",
    "EmbeddingModel": ".embedding",
    "LabelledPair": ".cache",
    "MemoryLeakDetector": ".memory_monitor",
    "MemoryMonitor": ".memory_monitor",
    "MemoryTracker": ".memory_monitor",
    "ModelQuantizer": ".quantization",
    "OptimizedContentManager": ".optimized_content_manager",
    "OptimizedContentMixin": ".optimized_content_manager",
    "QuantizationReport": ".quantization",
    "Selection": ".selection",
    "SmartCache": ".cache",
    "TextGuard": ".cache",
    "context_of": ".cache",
    "create_optimized_content_manager": ".optimized_content_manager",
    "find_optimized_response": ".optimized_content_manager",
    "get_memory_status": ".memory_monitor",
    "process_batch_queries": ".optimized_content_manager",
    "setup_memory_monitoring": ".memory_monitor",
    "track_memory": ".memory_monitor",
}

#: Modules that are names of their own.
_MODULES = ("half",)

__all__ = [
    "AdaptiveModelSelector",
    "AimoError",
    "BatchEmbeddingProcessor",
    "CacheFileError",
    "CacheHit",
    "ClosedError",
    "ContentFileError",
    "DeviceError",
    "Embedding",
    "EmbeddingModel",
    "LabelledPair",
    "MemoryLeakDetector",
    "MemoryMonitor",
    "MemoryTracker",
    "ModelFormatError",
    "ModelQuantizer",
    "NoSuitableModelError",
    "OptimizedContentManager",
    "OptimizedContentMixin",
    "PrecisionError",
    "QuantizationReport",
    "QueueFull",
    "Selection",
    "SmartCache",
    "SpaceMismatchError",
    "TextGuard",
    "UnsupportedError",
    "__version__",
    "context_of",
    "create_optimized_content_manager",
    "find_optimized_response",
    "get_memory_status",
    "half",
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
