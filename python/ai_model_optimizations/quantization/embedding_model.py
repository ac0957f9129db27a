"""Quantizing an EmbeddingModel: its weights are packed again in a smaller type."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..embedding import EmbeddingModel
from ..embedding.weights import new_encoder, tensor_places
from ..errors import ModelFormatError, PrecisionError, UnsupportedError
from .report import (
    ITEM_BYTES,
    CosineReport,
    QuantizationReport,
    TensorReport,
    resident_bytes,
    rest_report,
)
from .request import Request
from .rounding import Rounding, add_difference, measure
from .verify import check, compare

KIND = "EmbeddingModel"


def quantize(model: EmbeddingModel, request: Request) -> tuple[EmbeddingModel, QuantizationReport]:
    """Return the model with its weights in ``request.dtype``, and what that changed.

    Raises
    ------
    UnsupportedError
        If ``skip`` is given: the encoder stores all matrices in one type.
    ModelFormatError
        If a value is too large for the type; the message names the tensor.
    PrecisionError
        If a text's vector changes more than ``min_cosine`` allows.
    ValueError
        If the weights are already stored in another 16-bit type.
    """
    if request.skip:
        raise UnsupportedError(
            "skip: an EmbeddingModel stores all matrices in one type; skip works on dicts, "
            "safetensors files and torch models"
        )
    dtypes = _worth_trying(model, request)
    if dtypes == (model.dtype,) or request.dry_run:
        return model, QuantizationReport(KIND, dtypes[0], tuple(_reports(model, dtypes[0])))
    before = resident_bytes()
    result, cosine, notes = _first_that_keeps(model, request, dtypes)
    report = QuantizationReport(
        KIND,
        result.dtype,
        tuple(_reports(model, result.dtype, result)),
        before,
        resident_bytes(),
        cosine,
        notes,
    )
    return result, report


def _worth_trying(model: EmbeddingModel, request: Request) -> tuple[str, ...]:
    """Return the types to try: none larger than the model's own, which loses nothing."""
    dtypes = request.candidates()
    if model.dtype not in dtypes:
        return dtypes
    smaller = dtypes[: dtypes.index(model.dtype)] if model.dtype == "f16" else ()
    if request.automatic:
        smaller = ()
    return (*smaller, model.dtype)


def _first_that_keeps(
    model: EmbeddingModel, request: Request, dtypes: tuple[str, ...]
) -> tuple[EmbeddingModel, CosineReport | None, tuple[str, ...]]:
    """Try the types in turn; the failures of all but the last become notes."""
    notes: list[str] = []
    for dtype in dtypes:
        try:
            result = model.astype(dtype)
            cosine = None
            if request.verifies:
                cosine = compare(model.encode, result.encode, request.verify_texts)
                check(cosine, request, dtype)
            return result, cosine, tuple(notes)
        except (ModelFormatError, PrecisionError) as error:
            if dtype == dtypes[-1]:
                raise
            notes.append(f"{dtype} was left aside: {error}")
    raise AssertionError("there is always a type to try")


def _reports(
    model: EmbeddingModel, dtype: str, result: EmbeddingModel | None = None
) -> Iterator[TensorReport]:
    """Yield what storing the model as ``dtype`` does to each tensor.

    Parameters
    ----------
    result : the model as ``dtype``; without it, sizes only
    """
    target = new_encoder(model._folder, dtype)  # allocates nothing before a tensor is set
    before, after = model.memory_bytes, target.weight_bytes
    for name, layer, per_layer in tensor_places(model._folder):
        values = model._encoder.tensor(name, layer)
        rounded = None if result is None else result._encoder.tensor(name, layer)
        full_name = f"layers.{layer}.{name}" if per_layer else name
        report = _report(full_name, values, model.dtype, dtype, rounded)
        before, after = before - report.bytes_before, after - report.bytes_after
        yield report
    if before or after:
        yield rest_report(dtype, after, model.dtype, before)


def _report(
    name: str,
    values: NDArray[np.float32],
    old: str,
    new: str,
    rounded: NDArray[np.float32] | None,
) -> TensorReport:
    if values.ndim < 2:
        size = values.nbytes
        reason = "a norm or a bias"
        return TensorReport(name, values.shape, "f32", "f32", size, size, "kept", reason)
    sizes = values.size * ITEM_BYTES[old], values.size * ITEM_BYTES[new]
    if old == new:
        return TensorReport(
            name, values.shape, old, new, *sizes, "kept", f"stored as {old} already"
        )
    figures: dict[str, Any] = {}
    if rounded is not None and new == "int8":
        cost = Rounding()
        add_difference(values, rounded, cost)
        figures = cost.figures()
    elif rounded is not None:
        figures = measure(values, new).figures()
    return TensorReport(name, values.shape, old, new, *sizes, "quantized", **figures)
