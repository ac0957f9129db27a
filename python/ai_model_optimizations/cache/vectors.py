"""Converts embeddings from any form that users have to what the index takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..errors import SpaceMismatchError

#: A list, tuple, array or tensor of numbers; ``Any``, so that torch need not be imported.
EmbeddingLike: TypeAlias = Any

FLOAT32 = np.dtype(np.float32)


@runtime_checkable
class TextEncoder(Protocol):
    """Anything with ``encode(list of texts)``, such as ``EmbeddingModel``."""

    def encode(self, texts: Sequence[str], /) -> Any:
        """Return one vector per text."""


Embedder: TypeAlias = TextEncoder | Callable[[Sequence[str]], Any]


def _as_array(values: EmbeddingLike, name: str) -> NDArray[Any]:
    """View or copy `values` as a real-valued numpy array; a tensor is moved to the CPU first."""
    if type(values).__module__.partition(".")[0] == "torch":
        values = values.detach().cpu()
        # numpy has no bfloat16 of its own; complex numbers are refused below, not cut to reals.
        values = (values if values.is_complex() else values.float()).numpy()
    if isinstance(values, (str, bytes)):
        raise TypeError(f"{name} must be numbers, got {type(values).__name__}")
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} must be a rectangular array of numbers: {error}") from None
    # bfloat16 of ml_dtypes has numpy's kind "V".
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        raise TypeError(f"{name} must be real numbers, got dtype {array.dtype}")
    return array


def _to_float32(array: NDArray[Any], name: str) -> NDArray[np.float32]:
    """Return rows of finite, non-zero float32; other types are scaled so that none overflows."""
    if array.dtype != FLOAT32:
        wide = array.astype(np.float64)
        peak = np.abs(wide).max(axis=-1, keepdims=True, initial=0.0)
        # Only the direction counts, and a float64 may be too large or small for a float32.
        array = np.divide(wide, peak, out=wide, where=(peak > 0) & np.isfinite(peak))
    rows = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(rows).all():
        raise ValueError(f"{name} holds NaN or infinity")
    if not rows.any(axis=-1).all():
        raise ValueError(f"{name} is all zeros and has no direction")
    return rows


def as_vector(
    values: EmbeddingLike, dimension: int | None, name: str = "embedding"
) -> NDArray[np.float32]:
    """Return one embedding as a contiguous float32 vector.

    Parameters
    ----------
    values : (dim,) or (1, dim) numbers: list, tuple, numpy array or torch tensor
    dimension : the required dim; None accepts any

    Raises
    ------
    TypeError
        If the values are not real numbers.
    ValueError
        If the shape is wrong, or the vector is zero or not finite.
    """
    array = _as_array(values, name)
    if array.ndim == 2 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 1 or array.shape[0] == 0 or dimension not in (None, array.shape[0]):
        expected = "one vector" if dimension is None else f"({dimension},)"
        raise ValueError(f"{name} must have shape {expected}, got {array.shape}")
    return _to_float32(array, name)


def as_matrix(
    values: EmbeddingLike, dimension: int | None, name: str = "embeddings"
) -> NDArray[np.float32]:
    """Return several embeddings as a contiguous float32 matrix (n, dim); see `as_vector`."""
    if isinstance(values, (list, tuple)):
        if not values:
            return np.empty((0, dimension or 0), np.float32)
        return np.stack([as_vector(row, dimension, f"{name}[{i}]") for i, row in enumerate(values)])
    array = _as_array(values, name)
    if array.ndim != 2 or dimension not in (None, array.shape[1]):
        expected = "(n, dim)" if dimension is None else f"(n, {dimension})"
        raise ValueError(f"{name} must have shape {expected}, got {array.shape}")
    return _to_float32(array, name)


def embed(embedder: Embedder, texts: Sequence[str]) -> NDArray[np.float32]:
    """Embed `texts` and check that one vector came back for each."""
    call = embedder.encode if isinstance(embedder, TextEncoder) else embedder
    vectors = call(list(texts))
    rows = as_matrix(vectors, None, "the embedder's result")
    if rows.shape[0] != len(texts):
        raise ValueError(f"the embedder returned {rows.shape[0]} vectors for {len(texts)} texts")
    return rows


def space_of(source: object) -> str | None:
    """Return the `space_id` that an embedding or embedder carries, None if it has none."""
    space = getattr(source, "space_id", None)
    return space if isinstance(space, str) else None


def check_space(mine: str | None, theirs: str | None, what: str) -> str | None:
    """Return whichever of two space ids is known; if both are, they must be equal."""
    if mine is not None and theirs is not None and mine != theirs:
        raise SpaceMismatchError(
            f"{what} comes from the embedding space {theirs!r}, but this cache holds vectors of "
            f"{mine!r}: their similarity means nothing. Clear the cache or keep one per model"
        )
    return mine if mine is not None else theirs
