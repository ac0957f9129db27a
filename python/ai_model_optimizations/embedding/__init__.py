"""Embedding models and batching: model files in, vectors out.

Names are imported when they are first used, so that a service that only embeds does not pay for
importing asyncio and whatever else batching needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .batching import BatchEmbeddingProcessor
    from .model import EmbeddingModel
    from .vectors import Embedding

#: Where each name is defined.
_HOMES = {
    "BatchEmbeddingProcessor": ".batching",
    "Embedding": ".vectors",
    "EmbeddingModel": ".model",
}

__all__ = ["BatchEmbeddingProcessor", "Embedding", "EmbeddingModel"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
