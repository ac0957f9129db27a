"""Half precision: float32 (or float64) to and from the two 16-bit floats, fast and exactly rounded.

Arrays may have any shape, stride and byte order. They come as numpy arrays, as anything with the
buffer protocol, or as anything with DLPack, such as torch tensors. Rounding is to nearest even,
once; subnormals are kept; overflow gives infinity; a NaN stays a NaN with its sign.
Large arrays use all threads of the pool (``AIMO_NUM_THREADS``). Arrays on a CUDA device are
converted there, to the same bits; new results are then of the class
:class:`~ai_model_optimizations.DeviceArray`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from . import _core
from .device_array import DLPACK_CUDA, DeviceArray, axes_by_stride, bfloat16_dtype, is_on_cuda
from .devices import load_cuda

__all__ = ["HalfReport", "bf16_to_f32", "f16_to_f32", "f32_to_bf16", "f32_to_f16", "report"]

_Out = TypeVar("_Out")


@overload
def f32_to_f16(x: DeviceArray, out: None = None) -> DeviceArray: ...
@overload
def f32_to_f16(x: Any, out: None = None) -> NDArray[np.float16]: ...
@overload
def f32_to_f16(x: Any, out: _Out) -> _Out: ...
def f32_to_f16(x: Any, out: Any = None) -> Any:
    """Round float32 or float64 values to float16.

    Parameters
    ----------
    x : array of float32 or float64, any shape; float64 is rounded once, not through float32
    out : writable array of float16 and of x's shape, optional; it must not overlap x

    Returns
    -------
    ``out`` if given, else a new array of float16 with x's shape and order of axes: a numpy array,
    or a DeviceArray if x is on a CUDA device.
    Magnitudes from 65520 become infinite, those up to 2**-25 zero.

    Raises
    ------
    TypeError
        If x or out is not an array of a dtype named above.
    ValueError
        If x and out are not both in host memory or both on the same CUDA device, or out has another
        shape, is read-only or overlaps x.
    UnsupportedError, DeviceError, MemoryError
        If x is on a CUDA device and CUDA cannot be used, fails or runs out of memory; see
        docs/gpu.md.
    """
    if type(x) is not np.ndarray and is_on_cuda(x):
        return _convert_on_device("f32_to_f16", x, out)
    source = x if type(x) is np.ndarray else _as_array(x, "x")
    if out is None:
        return _core.f32_to_f16(source)
    _core.f32_to_f16(source, out if type(out) is np.ndarray else _as_array(out, "out"))
    return out


@overload
def f16_to_f32(x: DeviceArray, out: None = None) -> DeviceArray: ...
@overload
def f16_to_f32(x: Any, out: None = None) -> NDArray[np.float32]: ...
@overload
def f16_to_f32(x: Any, out: _Out) -> _Out: ...
def f16_to_f32(x: Any, out: Any = None) -> Any:
    """Widen float16 values to float32, exactly.

    Parameters
    ----------
    x : array of float16, any shape
    out : writable array of float32 and of x's shape, optional; it must not overlap x

    Returns
    -------
    ``out`` if given, else a new array of float32 with x's shape and order of axes: a numpy array,
    or a DeviceArray if x is on a CUDA device.

    Raises
    ------
    TypeError
        If x or out is not an array of a dtype named above.
    ValueError
        If x and out are not both in host memory or both on the same CUDA device, or out has another
        shape, is read-only or overlaps x.
    UnsupportedError, DeviceError, MemoryError
        If x is on a CUDA device and CUDA cannot be used, fails or runs out of memory; see
        docs/gpu.md.
    """
    if type(x) is not np.ndarray and is_on_cuda(x):
        return _convert_on_device("f16_to_f32", x, out)
    source = x if type(x) is np.ndarray else _as_array(x, "x")
    if out is None:
        return _core.f16_to_f32(source)
    _core.f16_to_f32(source, out if type(out) is np.ndarray else _as_array(out, "out"))
    return out


@overload
def f32_to_bf16(x: DeviceArray, out: None = None) -> DeviceArray: ...
@overload
def f32_to_bf16(x: Any, out: None = None) -> NDArray[Any]: ...
@overload
def f32_to_bf16(x: Any, out: _Out) -> _Out: ...
def f32_to_bf16(x: Any, out: Any = None) -> Any:
    """Round float32 values to bfloat16.

    Parameters
    ----------
    x : array of float32, any shape
    out : writable array of x's shape, optional, of ``ml_dtypes.bfloat16`` (or DLPack's bfloat16)
        or of uint16, which takes the bits; it must not overlap x

    Returns
    -------
    ``out`` when it was given, else a new numpy array with x's shape and order of axes: of
    ``ml_dtypes.bfloat16`` when that package is installed, else of uint16, the bits. An ``out`` of
    uint16, or ``.view(np.uint16)``, gives the bits in either case. A DeviceArray of bfloat16 when x
    is on a CUDA device.

    Raises
    ------
    TypeError
        If x or out is not an array of a dtype named above.
    ValueError
        If x and out are not both in host memory or both on the same CUDA device, or out has another
        shape, is read-only or overlaps x.
    UnsupportedError, DeviceError, MemoryError
        If x is on a CUDA device and CUDA cannot be used, fails or runs out of memory; see
        docs/gpu.md.
    """
    if type(x) is not np.ndarray and is_on_cuda(x):
        return _convert_on_device("f32_to_bf16", x, out)
    source = x if type(x) is np.ndarray else _as_array(x, "x")
    if out is None:
        return _core.f32_to_bf16(source, None, bfloat16_dtype())
    target = out if type(out) is np.ndarray else _as_array(out, "out")
    _core.f32_to_bf16(source, target, bfloat16_dtype())
    return out


@overload
def bf16_to_f32(x: DeviceArray, out: None = None) -> DeviceArray: ...
@overload
def bf16_to_f32(x: Any, out: None = None) -> NDArray[np.float32]: ...
@overload
def bf16_to_f32(x: Any, out: _Out) -> _Out: ...
def bf16_to_f32(x: Any, out: Any = None) -> Any:
    """Widen bfloat16 values to float32, exactly.

    Parameters
    ----------
    x : array of ``ml_dtypes.bfloat16`` (or DLPack's bfloat16) or of uint16, the bits; any shape
    out : writable array of float32 and of x's shape, optional; it must not overlap x

    Returns
    -------
    ``out`` if given, else a new array of float32 with x's shape and order of axes: a numpy array,
    or a DeviceArray if x is on a CUDA device.

    Raises
    ------
    TypeError
        If x or out is not an array of a dtype named above.
    ValueError
        If x and out are not both in host memory or both on the same CUDA device, or out has another
        shape, is read-only or overlaps x.
    UnsupportedError, DeviceError, MemoryError
        If x is on a CUDA device and CUDA cannot be used, fails or runs out of memory; see
        docs/gpu.md.
    """
    if type(x) is not np.ndarray and is_on_cuda(x):
        return _convert_on_device("bf16_to_f32", x, out)
    source = x if type(x) is np.ndarray else _as_array(x, "x")
    if out is None:
        return _core.bf16_to_f32(source, None, bfloat16_dtype())
    target = out if type(out) is np.ndarray else _as_array(out, "out")
    _core.bf16_to_f32(source, target, bfloat16_dtype())
    return out


# --- Arrays ------------------------------------------------------------------------------------

#: DLPack's name for the stream that the core converts on.
_LEGACY_STREAM = 1
_RESULTS = {
    "f32_to_f16": "float16",
    "f16_to_f32": "float32",
    "f32_to_bf16": "bfloat16",
    "bf16_to_f32": "float32",
}


def _as_array(value: Any, name: str) -> NDArray[Any]:
    """Return a numpy view of the memory of ``value``; DLPack's bfloat16 comes as uint16."""
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    if hasattr(value, "__dlpack__") and not isinstance(value, np.generic):
        return _core.dlpack_array(_capsule(value, name), name)
    try:
        return np.asarray(memoryview(value))
    except TypeError:
        raise TypeError(
            f"{name}: expected a numpy array, a buffer or a DLPack tensor, "
            f"got {type(value).__name__}"
        ) from None


def _capsule(value: Any, name: str) -> object:
    """Ask for a DLPack capsule of the CPU's memory."""
    if hasattr(value, "__dlpack_device__"):
        device = int(value.__dlpack_device__()[0])
        if device == DLPACK_CUDA:
            raise ValueError(f"{name}: expected memory of the CPU, got an array on a CUDA device")
        if device not in (1, 3, 11):  # the CPU's own memory, or what CUDA or ROCm have pinned
            raise ValueError(
                f"{name}: expected memory of the CPU or of a CUDA device, got a tensor on DLPack "
                f"device type {device}; convert it where it is (tensor.half(), tensor.bfloat16(), "
                "tensor.float()) or copy it to the CPU first"
            )
    return _newest_capsule(value)


def _newest_capsule(value: Any, **options: Any) -> object:
    """Ask for a capsule of version 1 where the library knows it: that tells read-only."""
    if hasattr(value, "is_neg") and value.is_neg():  # which torch's capsule does not tell
        raise BufferError("Can't export a negated view, use tensor.resolve_neg()")
    try:
        return value.__dlpack__(**options, max_version=(1, 0))
    except TypeError:  # an older library
        return value.__dlpack__(**options)


def _convert_on_device(name: str, x: Any, out: Any) -> Any:
    """Call the function ``name`` for an ``x`` on a CUDA device, where the result is as well."""
    load_cuda()
    index = int(x.__dlpack_device__()[1])
    source = _newest_capsule(x, stream=_LEGACY_STREAM)
    if out is None:
        shape, strides = _core.dlpack_layout(source, "x")
        out = DeviceArray(shape, _RESULTS[name], index, axes_by_stride(strides))
    elif not is_on_cuda(out):
        raise ValueError(
            f"out: expected memory of cuda:{index}, as x has, got {type(out).__name__}"
        )
    _core.half_on_device(name, source, _newest_capsule(out, stream=_LEGACY_STREAM))
    return out


# --- Report ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HalfReport:
    """What rounding an array to 16 bits does to it; see :func:`report`.

    Attributes
    ----------
    dtype : "float16" or "bfloat16"
    count : values in all
    nan, infinite : values that were NaN or infinite before; they are counted nowhere else
    overflowed : finite values that become infinite
    subnormal : values that become subnormal, which keeps fewer of their bits
    flushed_to_zero : values other than zero that become zero
    max_abs_error : largest ``abs(rounded - value)`` of the values that stay finite
    max_relative_error : largest ``abs(rounded - value) / abs(value)`` of those; 1 when one is
        flushed to zero
    sqnr_db : 10 log10(sum of squares / sum of squared errors) of those, in dB; inf when all of
        them are exact
    """

    dtype: str
    count: int
    nan: int
    infinite: int
    overflowed: int
    subnormal: int
    flushed_to_zero: int
    max_abs_error: float
    max_relative_error: float
    sqnr_db: float

    def __str__(self) -> str:
        return (
            f"{self.count} values to {self.dtype}: {self.overflowed} overflowed, "
            f"{self.subnormal} subnormal, {self.flushed_to_zero} flushed to zero, "
            f"max error {self.max_abs_error:.3g} (relative {self.max_relative_error:.3g}), "
            f"SQNR {self.sqnr_db:.1f} dB"
        )


class _SumOfSquares:
    """A sum of squares that neither overflows nor vanishes: ``scale**2 * value``."""

    def __init__(self) -> None:
        self.scale = 0.0
        self.value = 0.0

    def add(self, x: NDArray[np.float64]) -> None:
        largest = float(np.max(x, initial=0.0))
        if largest > self.scale:
            self.value *= (self.scale / largest) ** 2
            self.scale = largest
        if self.scale > 0:
            scaled = x / self.scale
            self.value += float(np.dot(scaled, scaled))

    def decibels_over(self, other: _SumOfSquares) -> float:
        if other.value == 0:
            return math.inf
        return 20 * math.log10(self.scale / other.scale) + 10 * math.log10(self.value / other.value)


_SMALLEST_NORMAL = {"float16": 2.0**-14, "bfloat16": 2.0**-126}
_BLOCK = 1 << 16


def report(x: Any, dtype: Any) -> HalfReport:
    """Say what rounding ``x`` to a 16-bit float would lose, without keeping the result.

    Parameters
    ----------
    x : array of float32 (or float64, to float16 only), any shape
    dtype : "float16" or "f16" or ``np.float16``; "bfloat16" or "bf16" or ``ml_dtypes.bfloat16``

    Returns
    -------
    HalfReport

    Raises
    ------
    TypeError
        If x is no array of the dtype named above.
    ValueError
        If dtype names neither type, or x is not in the CPU's memory.
    """
    name = _dtype_name(dtype)
    array = _as_array(x, "x")
    accepted = (np.float32, np.float64) if name == "float16" else (np.float32,)
    if array.dtype.newbyteorder("=") not in accepted:
        expected = " or ".join(np.dtype(each).name for each in accepted)
        raise TypeError(f"x: expected dtype {expected}, got {array.dtype}")
    signal, noise = _SumOfSquares(), _SumOfSquares()
    counts = dict.fromkeys(("nan", "infinite", "overflowed", "subnormal", "flushed_to_zero"), 0)
    max_abs = max_relative = 0.0
    blocks: Any = np.nditer(
        array,
        flags=["external_loop", "buffered", "zerosize_ok"],
        op_dtypes=[array.dtype.newbyteorder("=")],
        buffersize=_BLOCK,
    )
    for whole in blocks:
        for start in range(0, whole.size, _BLOCK):  # numpy gives contiguous arrays in one piece
            block = whole[start : start + _BLOCK]
            magnitude, rounded = _magnitudes(block, name)
            kept = _count(magnitude, rounded, _SMALLEST_NORMAL[name], counts)
            magnitude = magnitude[kept]
            error = np.abs(rounded[kept] - magnitude)
            max_abs = max(max_abs, float(np.max(error, initial=0.0)))
            nonzero = magnitude > 0
            relative = error[nonzero] / magnitude[nonzero]
            max_relative = max(max_relative, float(np.max(relative, initial=0.0)))
            signal.add(magnitude)
            noise.add(error)
    return HalfReport(
        dtype=name,
        count=array.size,
        **counts,
        max_abs_error=max_abs,
        max_relative_error=max_relative,
        sqnr_db=signal.decibels_over(noise),
    )


def _magnitudes(block: NDArray[Any], name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the absolute values before and after rounding, as float64; both are exact."""
    if name == "float16":
        rounded = _core.f16_to_f32(_core.f32_to_f16(block))
    else:
        rounded = _core.bf16_to_f32(_core.f32_to_bf16(block))
    with np.errstate(invalid="ignore"):  # a signalling NaN is data
        return np.abs(block.astype(np.float64)), np.abs(rounded.astype(np.float64))


def _count(
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    smallest_normal: float,
    counts: dict[str, int],
) -> NDArray[np.bool_]:
    """Add what happened to these magnitudes to ``counts``; return which of them stay finite."""
    kept: NDArray[np.bool_] = np.isfinite(after)
    infinite = np.isinf(before)
    for name, where in (
        ("nan", np.isnan(before)),
        ("infinite", infinite),
        ("overflowed", np.isinf(after) & ~infinite),
        ("subnormal", (after > 0) & (after < smallest_normal)),
        ("flushed_to_zero", (after == 0) & (before > 0)),
    ):
        counts[name] += int(np.count_nonzero(where))
    return kept


def _dtype_name(dtype: Any) -> str:
    if isinstance(dtype, str):
        name = {"f16": "float16", "bf16": "bfloat16"}.get(dtype, dtype)
    else:
        try:
            name = np.dtype(dtype).name
        except TypeError:
            name = repr(dtype)
    if name not in _SMALLEST_NORMAL:
        raise ValueError(f"dtype: expected float16 or bfloat16, got {name}")
    return name
