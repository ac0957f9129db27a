"""Quantizing an EmbeddingModel: its weights are packed again in a smaller type."""

from __future__ import annotations

from ..embedding import EmbeddingModel
from .report import QuantizationReport
from .request import Request


def quantize(model: EmbeddingModel, request: Request) -> tuple[EmbeddingModel, QuantizationReport]:
    """Return the model with its weights in ``request.dtype``, and what that changed."""
    dtype = "f16" if request.dtype == "smallest" else request.dtype
    result = model.astype(dtype)
    return result, QuantizationReport("EmbeddingModel", dtype, ())
