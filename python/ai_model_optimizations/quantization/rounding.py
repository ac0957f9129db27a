"""Rounding arrays and counting what it loses, in pieces, so that memory use stays flat."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core

_PIECE = 1 << 17
#: The smallest normal value of each type; what lies below has fewer significant bits.
_SMALLEST_NORMAL = {"f16": 2.0**-14, "bf16": 2.0**-126}


@dataclass
class Rounding:
    """What storing values in a smaller type does to them."""

    count: int = 0
    #: NaN and infinity among the values themselves.
    not_finite: int = 0
    overflowed: int = 0
    subnormal: int = 0
    flushed: int = 0
    max_error: float = 0.0
    signal: float = 0.0
    noise: float = 0.0

    @property
    def fits(self) -> bool:
        """Whether every value is finite and remains so."""
        return self.not_finite == 0 and self.overflowed == 0

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise in decibels; inf when nothing was lost."""
        if self.noise == 0.0:
            return math.inf
        return 10.0 * math.log10(self.signal / self.noise)

    def problem(self, dtype: str) -> str:
        """Say why the values cannot be stored in ``dtype``; empty when they can."""
        parts = []
        if self.not_finite:
            parts.append(f"{self.not_finite} values are NaN or infinite")
        if self.overflowed:
            parts.append(f"{self.overflowed} values are too large for {dtype}")
        return " and ".join(parts)

    def figures(self) -> dict[str, Any]:
        """Return the keyword arguments of a TensorReport."""
        if not self.fits:
            return {"overflowed": self.overflowed}
        return {
            "sqnr_db": self.sqnr_db,
            "max_error": self.max_error,
            "subnormal": self.subnormal,
            "flushed": self.flushed,
        }


def measure(values: NDArray[Any], dtype: str, result: Rounding | None = None) -> Rounding:
    """Count what rounding to ``"f16"`` or ``"bf16"`` would do; any shape, stride and float type.

    Parameters
    ----------
    result : counts of earlier pieces of the same tensor, to which these are added
    """
    if result is None:
        result = Rounding()
    for piece in _pieces(values):
        _measure_piece(result, piece, dtype)
    return result


def add_difference(
    before: NDArray[np.float32], after: NDArray[np.float32], result: Rounding
) -> None:
    """Count what storing an int8 weight did to it; same shapes, all values finite."""
    flat, stored = before.reshape(-1), after.reshape(-1)
    for start in range(0, flat.size, _PIECE):
        old, new = flat[start : start + _PIECE], stored[start : start + _PIECE]
        result.count += old.size
        result.flushed += int(np.count_nonzero((new == 0) & (old != 0)))
        _add_errors(result, old, new)


def count_unfit(values: NDArray[np.float32], limit: float, result: Rounding) -> None:
    """Count the values that int8 cannot store: NaN, infinity, magnitudes of `limit` or more."""
    finite = np.isfinite(values)
    result.not_finite += int(values.size - np.count_nonzero(finite))
    result.overflowed += int(np.count_nonzero(finite & (np.abs(values) >= limit)))


def narrow(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return values rounded to nearest even: float16, or the bits of bf16 as uint16."""
    out = np.empty(values.shape, np.float16 if dtype == "f16" else np.uint16)
    flat = out.reshape(-1)
    position = 0
    for piece in _pieces(values):
        flat[position : position + piece.size] = _narrow_piece(piece, dtype)
        position += piece.size
    return out


def _pieces(values: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield the values in order as flat, contiguous, native arrays of float32 or float64."""
    wide = np.dtype(np.float64 if values.dtype.itemsize > 4 else np.float32)
    if values.ndim < 2 or values.flags.c_contiguous:
        values, step = values.reshape(-1), _PIECE
    else:
        step = max(1, _PIECE // max(1, values[:1].size))
    for start in range(0, len(values), step):
        yield np.ascontiguousarray(values[start : start + step], wide).reshape(-1)


def _narrow_piece(piece: NDArray[Any], dtype: str) -> NDArray[Any]:
    if piece.dtype == np.float32:
        return _core.f32_to_f16(piece) if dtype == "f16" else _core.f32_to_bf16(piece)
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype == "f16":
            return piece.astype(np.float16)
        return _core.f32_to_bf16(_odd_rounded(piece))


def _odd_rounded(piece: NDArray[np.float64]) -> NDArray[np.float32]:
    """Float32 that rounds on to bf16 as the float64 itself would: inexact values become odd."""
    near = piece.astype(np.float32)
    toward_zero = np.abs(near).astype(np.float64) > np.abs(piece)
    bits = near.view(np.uint32) - toward_zero.astype(np.uint32)
    bits |= (near.astype(np.float64) != piece) & np.isfinite(near)
    return bits.view(np.float32)


def _widen(piece: NDArray[Any]) -> NDArray[np.float32]:
    return _core.f16_to_f32(piece) if piece.dtype == np.float16 else _core.bf16_to_f32(piece)


def _measure_piece(result: Rounding, piece: NDArray[Any], dtype: str) -> None:
    after = _widen(_narrow_piece(piece, dtype))
    stays = np.isfinite(after)
    if not stays.all():
        finite = np.isfinite(piece)
        result.not_finite += int(piece.size - np.count_nonzero(finite))
        result.overflowed += int(np.count_nonzero(finite & ~stays))
        piece, after = piece[stays], after[stays]
    result.count += stays.size
    magnitude = np.abs(after)
    below = int(np.count_nonzero(magnitude < _SMALLEST_NORMAL[dtype]))
    if below:
        zeros = int(np.count_nonzero(magnitude == 0))
        result.subnormal += below - zeros
        result.flushed += zeros - int(np.count_nonzero(piece == 0))
    _add_errors(result, piece, after)


def _add_errors(result: Rounding, piece: NDArray[Any], after: NDArray[np.float32]) -> None:
    # Squares of values below 1e-19 need more than float32.
    before = piece.astype(np.float64)
    error = after - before
    result.max_error = max(result.max_error, float(np.abs(error).max(initial=0.0)))
    result.noise += float(np.dot(error, error))
    result.signal += float(np.dot(before, before))
