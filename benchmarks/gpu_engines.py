"""The engines that bench_gpu.py compares, each on CUDA device 0.

As in encoder_engines.py, an engine has `load()` and `encode(texts)`. Peers get large batches of
like length, which is what a GPU wants; the padding-free one gets them without padding.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from encoder_engines import Engine, Vectors, model_folder

#: Texts of a peer's batch.
BATCH = 256


def model_name() -> str:
    """What is measured: bench_gpu.py's --model, or the default model."""
    return os.environ.get("AIMO_BENCH_MODEL") or str(model_folder())


class Ours:
    """What is measured: ai_model_optimizations."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype

    def load(self) -> None:
        from ai_model_optimizations import EmbeddingModel

        self.model = EmbeddingModel.load(model_name(), dtype=self.dtype, device="cuda")

    def encode(self, texts: list[str]) -> Vectors:
        return _unit(self.model.encode(texts))


class SentenceTransformers:
    """The peer, in a type, perhaps with another attention or compiled."""

    def __init__(self, dtype: str, attention: str = "sdpa", compiled: bool = False) -> None:
        self.dtype, self.attention, self.compiled = dtype, attention, compiled

    def load(self) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        settings: dict[str, Any] = {
            "dtype": getattr(torch, self.dtype),
            "attn_implementation": self.attention,
        }
        self.model = SentenceTransformer(model_name(), device="cuda", model_kwargs=settings)
        if self.compiled:
            transformer = self.model[0]
            transformer.auto_model = torch.compile(transformer.auto_model, dynamic=True)

    def encode(self, texts: list[str]) -> Vectors:
        vectors = self.model.encode(texts, batch_size=BATCH, show_progress_bar=False)
        return _unit(np.asarray(vectors, dtype=np.float32))


def _unit(vectors: Vectors) -> Vectors:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


#: In the order of the table. The first is the reference for the cosine.
ENGINES: dict[str, Callable[[], Engine]] = {
    "sentence-transformers fp32": lambda: SentenceTransformers("float32"),
    "sentence-transformers fp16": lambda: SentenceTransformers("float16"),
    "sentence-transformers bf16": lambda: SentenceTransformers("bfloat16"),
    "sentence-transformers fp16, padding-free": lambda: SentenceTransformers(
        "float16", attention="flash_attention_2"
    ),
    "sentence-transformers fp16, torch.compile": lambda: SentenceTransformers(
        "float16", compiled=True
    ),
    "ours f32": lambda: Ours("f32"),
    "ours f16": lambda: Ours("f16"),
    "ours bf16": lambda: Ours("bf16"),
}
