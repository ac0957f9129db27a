"""Checks of arguments; every message names the argument."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def check_count(name: str, value: object) -> None:
    """Raise TypeError or ValueError unless `value` is an int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")


def check_number(name: str, value: object, *, at_least_zero: bool) -> None:
    """Raise TypeError or ValueError unless `value` is finite and above 0, or 0 if allowed."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not np.isfinite(value) or value < 0 or (value == 0 and not at_least_zero):
        bound = "at least 0" if at_least_zero else "above 0"
        raise ValueError(f"{name}: expected a finite number {bound}, got {value}")


def check_dimension(truncate_dim: int | None, dimension: int) -> int:
    """Return how many elements of a vector of `dimension` are kept; None keeps all.

    Raises
    ------
    ValueError
        If `truncate_dim` is not an int from 1 to `dimension`.
    """
    if truncate_dim is None:
        return dimension
    is_count = isinstance(truncate_dim, (int, np.integer)) and not isinstance(truncate_dim, bool)
    if not is_count or not 1 <= truncate_dim <= dimension:
        raise ValueError(f"truncate_dim: expected 1 to {dimension}, got {truncate_dim!r}")
    return int(truncate_dim)


def check_texts(texts: Sequence[str]) -> Sequence[str]:
    """Return `texts`; TypeError unless they are a sequence or a one-dimensional array."""
    if isinstance(texts, (bytes, bytearray)) or not isinstance(texts, (Sequence, np.ndarray)):
        raise TypeError(f"texts: expected str or a sequence of str, got {type(texts).__name__}")
    if isinstance(texts, np.ndarray) and texts.ndim != 1:
        raise TypeError(f"texts: expected an array of one dimension, got {texts.ndim}")
    return texts
