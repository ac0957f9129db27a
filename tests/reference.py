"""The definitions in float64 NumPy; the only place where a formula is restated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = Mapping[str, NDArray[np.float32]]

_erf = np.vectorize(math.erf)


def layer_norm(x: Array, weight: Array, bias: Array, epsilon: float) -> Array:
    """y = (x - mean) / sqrt(variance + epsilon) * weight + bias over the last axis."""
    mean = x.mean(axis=-1, keepdims=True)
    variance = x.var(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * weight + bias


def gelu(x: Array) -> Array:
    """x Phi(x)."""
    return 0.5 * x * (1.0 + _erf(x / math.sqrt(2.0)))


def attention(q: Array, k: Array, v: Array, heads: int) -> Array:
    """Scaled dot-product attention; q, k, v (length, hidden)."""
    length, hidden = q.shape
    q, k, v = (x.reshape(length, heads, -1).transpose(1, 0, 2) for x in (q, k, v))
    scores = q @ k.transpose(0, 2, 1) / math.sqrt(hidden // heads)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights = scores / scores.sum(axis=-1, keepdims=True)
    return (weights @ v).transpose(1, 0, 2).reshape(length, hidden)


def bert_tokens(weights: Weights, ids: Sequence[int], heads: int, layers: int) -> Array:
    """The token vectors of BERT; ``weights`` by their names in transformers, GELU, eps 1e-12."""
    w = {name: tensor.astype(np.float64) for name, tensor in weights.items()}

    def linear(x: Array, name: str) -> Array:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: Array, name: str) -> Array:
        return layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"], 1e-12)

    x = w["embeddings.word_embeddings.weight"][list(ids)]
    x = x + w["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for layer in range(layers):
        name = f"encoder.layer.{layer}"
        q, k, v = (linear(x, f"{name}.attention.self.{p}") for p in ("query", "key", "value"))
        attended = linear(attention(q, k, v, heads), f"{name}.attention.output.dense")
        x = norm(x + attended, f"{name}.attention.output.LayerNorm")
        inner = gelu(linear(x, f"{name}.intermediate.dense"))
        x = norm(x + linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")
    return x
