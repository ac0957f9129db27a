"""Model files in, vectors out."""

from .batching import BatchEmbeddingProcessor
from .model import EmbeddingModel
from .vectors import Embedding

__all__ = ["BatchEmbeddingProcessor", "Embedding", "EmbeddingModel"]
