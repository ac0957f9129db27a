"""Quantizing an EmbeddingModel: its weights are packed again in a smaller type."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..embedding import EmbeddingModel
from ..embedding.weights import new_encoder, tensor_places
from ..errors import ModelFormatError, PrecisionError, UnsupportedError
from .report import CosineReport, QuantizationReport, TensorReport, resident_bytes
from .request import Request
from .rounding import measure
from .verify import check, compare

KIND = "EmbeddingModel"
_BYTES = {"f32": 4, "f16": 2, "bf16": 2}


def quantize(model: EmbeddingModel, request: Request) -> tuple[EmbeddingModel, QuantizationReport]:
    """Return the model with its weights in ``request.dtype``, and what that changed.

    Raises
    ------
    UnsupportedError
        If something is to be skipped: the encoder stores all matrices in one type.
    ModelFormatError
        If a value is too large for the type; the message names the tensor.
    PrecisionError
        If a text's vector changes more than ``min_cosine`` allows.
    ValueError
        If the weights are stored in another 16-bit type already.
    """
    if request.skip:
        raise UnsupportedError(
            "skip: an EmbeddingModel stores all matrices in one type; skip works on dicts, "
            "safetensors files and torch models"
        )
    dtypes = request.candidates()
    if model.dtype in dtypes or request.dry_run:
        dtype = model.dtype if model.dtype in dtypes else dtypes[0]
        return model, QuantizationReport(KIND, dtype, tuple(_reports(model, dtype, look=False)))
    before = resident_bytes()
    result, cosine, notes = _first_that_keeps(model, request, dtypes)
    report = QuantizationReport(
        KIND,
        result.dtype,
        tuple(_reports(model, result.dtype, look=True)),
        before,
        resident_bytes(),
        cosine,
        notes,
    )
    return result, report


def _first_that_keeps(
    model: EmbeddingModel, request: Request, dtypes: tuple[str, ...]
) -> tuple[EmbeddingModel, CosineReport | None, tuple[str, ...]]:
    """Try the types in turn; what is wrong with all but the last becomes a note."""
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


def _tensors(model: EmbeddingModel) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield every tensor of the encoder, widened, with a name that tells its layer."""
    for name, layer, per_layer in tensor_places(model._folder):
        yield f"layers.{layer}.{name}" if per_layer else name, model._encoder.tensor(name, layer)


def _reports(model: EmbeddingModel, dtype: str, *, look: bool) -> Iterator[TensorReport]:
    """Yield what storing the model as ``dtype`` does to each tensor; ``look`` at the values too."""
    target = new_encoder(model._folder, dtype)  # allocates nothing before a tensor is set
    before, after = model.memory_bytes, target.weight_bytes
    for name, values in _tensors(model):
        report = _report(name, values, model.dtype, dtype, look=look)
        before, after = before - report.bytes_before, after - report.bytes_after
        yield report
    if before or after:  # of panels, whose columns come in sixteens
        yield TensorReport("(padding)", (), model.dtype, dtype, before, after, "quantized")


def _report(
    name: str, values: NDArray[np.float32], old: str, new: str, *, look: bool
) -> TensorReport:
    if values.ndim < 2:
        size = values.nbytes
        reason = "a norm or a bias"
        return TensorReport(name, values.shape, "f32", "f32", size, size, "kept", reason)
    sizes = values.size * _BYTES[old], values.size * _BYTES[new]
    if old == new:
        return TensorReport(
            name, values.shape, old, new, *sizes, "kept", f"stored as {old} already"
        )
    figures = measure(values, new).figures() if look else {}
    return TensorReport(name, values.shape, old, new, *sizes, "quantized", **figures)
