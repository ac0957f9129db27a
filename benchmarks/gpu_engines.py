"""The engines that bench_gpu.py compares, each on CUDA device 0.

As in encoder_engines.py, an engine has `load()` and `encode(texts)`. Peers get large batches of
similar length, which suits a GPU; the padding-free one gets them without padding.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from encoder_engines import Engine, Vectors, model_folder

#: Texts in a peer's batch.
BATCH = 256


#: The device that computes; "cpu" is for trying the scripts (bench_gpu.py --try-on-cpu).
DEVICE = os.environ.get("AIMO_BENCH_DEVICE", "cuda")


def model_name() -> str:
    """The model to measure: bench_gpu.py's --model, or the default model."""
    return str(model_folder())


def save_bert_base(tokenizer: Path, path: Path) -> None:
    """Write a folder of bert-base's shape with random weights in fp16, and another's tokenizer."""
    import torch
    from transformers import BertConfig, BertModel

    shutil.copytree(tokenizer, path)
    for weights in (*path.rglob("*.safetensors"), *path.rglob("*.bin")):
        weights.unlink()
    torch.manual_seed(1)
    shape = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
    config = BertConfig.from_pretrained(tokenizer, intermediate_size=3072, **shape)
    BertModel(config).half().save_pretrained(path)
    for file, key, value in (
        (path / "1_Pooling" / "config.json", "word_embedding_dimension", 768),
        (path / "sentence_bert_config.json", "max_seq_length", 512),
    ):
        file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))


class Ours:
    """The engine under test: ai_model_optimizations."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype

    def load(self) -> None:
        from ai_model_optimizations import EmbeddingModel

        self.model = EmbeddingModel.load(model_name(), dtype=self.dtype, device=DEVICE)

    def encode(self, texts: list[str]) -> Vectors:
        return _unit(self.model.encode(texts))


class SentenceTransformers:
    """The peer in a given type, optionally compiled or with another attention."""

    def __init__(self, dtype: str, attention: str = "sdpa", compiled: bool = False) -> None:
        self.dtype, self.attention, self.compiled = dtype, attention, compiled

    def load(self) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        settings: dict[str, Any] = {
            "dtype": getattr(torch, self.dtype),
            "attn_implementation": self.attention,
        }
        self.model = SentenceTransformer(model_name(), device=DEVICE, model_kwargs=settings)
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
