"""Quantizing named numpy arrays: matrices and tables become 16 bits, the rest stays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UnsupportedError
from .report import ITEM_BYTES, QuantizationReport, TensorReport, resident_bytes
from .request import Request
from .rounding import measure, narrow

KIND = "dict"
#: Our names of the dtypes that numpy arrays come in.
_NAMES = {
    "float16": "f16",
    "float32": "f32",
    "float64": "f64",
    "bfloat16": "bf16",
    "bool": "bool",
    **{f"int{bits}": f"i{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"u{bits}" for bits in (8, 16, 32, 64)},
}

Tensors = dict[str, NDArray[Any]]


def quantize(tensors: Tensors, request: Request) -> tuple[Tensors, QuantizationReport]:
    """Return the arrays by the same names, matrices and tables as float16 or bfloat16.

    An array that appears under several names stays one. With ``request.in_place`` the arrays are
    replaced in ``tensors`` one by one, so that each can be freed before the next is converted.

    Raises
    ------
    TypeError
        If a value is no numpy array; the message names its key.
    ValueError
        If there are no arrays at all, or ``skip`` matches none of the names.
    UnsupportedError
        If a cosine is requested, as arrays embed nothing, or bf16 without ml_dtypes.
    """
    _check(tensors, request)
    dtype = numpy_dtype(request)
    before = None if request.dry_run else resident_bytes()
    result: Tensors = tensors if request.in_place else {}
    reports: list[TensorReport] = []
    done: dict[int, tuple[NDArray[Any], str]] = {}  # by the given array, for tied ones
    for name in list(tensors):
        values = tensors[name]
        if id(values) in done:
            converted, first = done[id(values)]
            reports.append(_tied(name, values, converted, first))
        else:
            report = examine(name, values, dtype, request)
            reports.append(report)
            quantized = report.action == "quantized" and not request.dry_run
            converted = as_bf16(narrow(values, dtype)) if quantized else values
            done[id(values)] = converted, name
        if not request.dry_run:
            result[name] = converted
        del values
    after = None if request.dry_run else resident_bytes()
    report_of_all = QuantizationReport(
        KIND, dtype, tuple(reports), before, after, None, notes(reports)
    )
    return (tensors if request.dry_run else result), report_of_all


def examine(name: str, values: NDArray[Any], dtype: str, request: Request) -> TensorReport:
    """Decide what becomes of an array; with ``request.dry_run`` without looking at its values."""
    old = dtype_name(values)
    reason = reason_to_keep(name, values.shape, old, request)
    figures: dict[str, Any] = {}
    if not reason and not request.dry_run:
        rounding = measure(values, dtype)
        reason, figures = rounding.problem(dtype), rounding.figures()
    return tensor_report(name, values.shape, old, values.nbytes, dtype, reason, figures)


def tensor_report(
    name: str,
    shape: tuple[int, ...],
    old: str,
    size: int,
    dtype: str,
    reason: str,
    figures: dict[str, Any],
) -> TensorReport:
    """Report a tensor that is quantized, or kept when there is a ``reason``."""
    if reason:
        return TensorReport(name, shape, old, old, size, size, "kept", reason, **figures)
    count = int(np.prod(shape, dtype=np.int64))
    after = count * ITEM_BYTES[dtype]
    return TensorReport(name, shape, old, dtype, size, after, "quantized", "", **figures)


def reason_to_keep(name: str, shape: tuple[int, ...], old: str, request: Request) -> str:
    """Say why a tensor stays as it is, from its name and type alone; empty when it need not."""
    if request.skips(name):
        return "named by skip"
    if old in ("f16", "bf16"):
        return f"stored as {old} already"
    if old not in ("f32", "f64"):
        return f"{old} is no floating-point type"
    if len(shape) < 2:
        return "a norm, a bias or a number"
    return ""


def dtype_name(values: NDArray[Any]) -> str:
    """Return our name of an array's dtype, or numpy's where we have none."""
    name = str(values.dtype.name)
    return _NAMES.get(name, name)


def notes(reports: Sequence[TensorReport]) -> tuple[str, ...]:
    """Return what a reader should not miss."""
    if any(report.action == "quantized" for report in reports):
        return ()
    return ("Nothing was quantized.",)


def refuse_cosine(request: Request, what: str) -> None:
    """Raise UnsupportedError when texts are to be embedded with what cannot embed."""
    if request.min_cosine is not None or request.verify_texts is not None:
        raise UnsupportedError(
            f"min_cosine, verify_texts: {what} cannot embed texts; "
            "load it with EmbeddingModel.load and quantize that"
        )


def _check(tensors: Tensors, request: Request) -> None:
    if not tensors:
        raise ValueError("model: the dict is empty")
    for name, values in tensors.items():
        if not isinstance(name, str):
            raise TypeError(f"model: expected names as keys, got {type(name).__name__}")
        if not isinstance(values, np.ndarray):
            raise TypeError(f"model[{name!r}]: expected a numpy array, got {type(values).__name__}")
    refuse_cosine(request, "a dict of arrays")
    request.check_skip(tensors)


def array_dtype(request: Request) -> str:
    """Return the type to use for arrays and files of them, which have no place for scales."""
    dtype = request.without_texts().dtype
    if dtype == "int8":
        raise UnsupportedError(
            "dtype: int8 needs scales, which bare arrays and other models' files have no place "
            "for; use f16, or load the model and quantize that"
        )
    return dtype


def numpy_dtype(request: Request) -> str:
    """Return the type to use: numpy itself has no bfloat16."""
    dtype = array_dtype(request)
    if dtype == "bf16" and not _has_ml_dtypes():
        if request.automatic:
            return "f16"
        raise UnsupportedError(
            "dtype: numpy has no bf16; install ml-dtypes, which brings it, or use dtype='f16'"
        )
    return dtype


def _has_ml_dtypes() -> bool:
    try:
        import ml_dtypes  # noqa: F401 - defines numpy's bfloat16
    except ImportError:
        return False
    return True


def as_bf16(values: NDArray[Any]) -> NDArray[Any]:
    """Return the bits of bf16 as numbers, where ml_dtypes is installed; float16 as it is."""
    if values.dtype != np.uint16 or not _has_ml_dtypes():
        return values
    import ml_dtypes

    return values.view(ml_dtypes.bfloat16)


def _tied(name: str, values: NDArray[Any], converted: NDArray[Any], first: str) -> TensorReport:
    new = dtype_name(converted)
    reason = f"tied to {first}"
    return TensorReport(name, values.shape, dtype_name(values), new, 0, 0, "kept", reason)
