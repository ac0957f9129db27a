"""Quantizing a model at a path: one that the encoder runs, or any safetensors file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..embedding import EmbeddingModel
from ..embedding.folder import ModelFolder, read_folder
from ..embedding.lookup import find_model
from ..embedding.mapped_file import MappedFile
from ..embedding.packed_file import is_packed
from ..embedding.packed_model import check_target
from ..embedding.weights import family_places, new_encoder
from ..errors import AimoError, ModelFormatError, PrecisionError
from . import embedding_model
from .report import QuantizationReport, TensorReport, resident_bytes, rest_report
from .request import Request
from .rounding import Rounding, add_difference
from .tensor_files import (
    file_dtype,
    measure_file,
    quantize_files,
    quantize_tensors,
)
from .tensors import Tensors, reason_to_keep, refuse_cosine, tensor_report
from .verify import check, compare

Source = str | os.PathLike[str]


def quantize(
    model: Source, request: Request
) -> tuple[EmbeddingModel | Tensors | Source, QuantizationReport]:
    """Return an EmbeddingModel if the encoder runs the model, else the tensors as arrays.

    Raises
    ------
    FileNotFoundError
        If there is no such file or folder.
    UnsupportedError
        If it is an ONNX model or a pickle; the message says what to do instead.
    ModelFormatError
        If a file is damaged; the message names it.
    """
    path = _locate(model)
    folder, why_not = _as_model(path)
    if is_packed(path):
        return embedding_model.quantize(EmbeddingModel.load(path), request)
    if folder is not None and not request.skip:
        result, report = _load_model(path, folder, request)
        return (model if result is None else result), report
    refuse_cosine(request, why_not or "with skip, the tensors are returned as arrays, which")
    tensors, report = quantize_tensors(path, request)
    return (model if request.dry_run else tensors), report


def quantize_to(source: Source, target: Path, request: Request) -> QuantizationReport:
    """Quantize a model at a path into a new one, if possible without loading it whole.

    A model that the encoder runs becomes a packed folder; any other keeps its format.
    """
    path = _locate(source)
    folder, why_not = _as_model(path)
    if not is_packed(path) and (folder is None or request.skip):
        refuse_cosine(request, why_not or "with skip, the model keeps its form and")
        return quantize_files(path, target, request)
    check_target(target)
    result, report = quantize(source, request)
    if not request.dry_run:
        assert isinstance(result, EmbeddingModel)
        result.save(target)
    return report


def _locate(model: Source) -> Path:
    if not os.fspath(model):
        raise ValueError("model: expected a path or a name, got an empty string")
    path = Path(model).expanduser()
    return path if path.exists() else find_model(model)


def _as_model(path: Path) -> tuple[ModelFolder | None, str]:
    """Return the folder's description if the encoder runs the model, else None and the reason."""
    if not any((path / name).is_file() for name in ("config.json", "modules.json")):
        return None, f"{path.name}, which is no model folder,"
    try:
        return read_folder(path), ""
    except AimoError as error:
        return None, f"{path.name} ({error})"


def _load_model(
    path: Path, folder: ModelFolder, request: Request
) -> tuple[EmbeddingModel | None, QuantizationReport]:
    dtypes = request.candidates()
    if request.dry_run:
        return None, QuantizationReport("model folder", dtypes[0], tuple(_sizes(folder, dtypes[0])))
    before = resident_bytes()
    notes: list[str] = []
    for dtype in dtypes:
        try:
            model = EmbeddingModel.load(path, dtype=dtype)
            cosine = None
            if request.verifies:
                full = EmbeddingModel.load(path, dtype="f32")
                cosine = compare(full.encode, model.encode, request.verify_texts)
                del full
                check(cosine, request, dtype)
            break
        except (ModelFormatError, PrecisionError) as error:
            if dtype == dtypes[-1]:
                raise
            notes.append(f"{dtype} was left aside: {error}")
    tensors = tuple(_sizes(folder, model.dtype, model))
    after = resident_bytes()
    return model, QuantizationReport(
        "model folder", model.dtype, tensors, before, after, cosine, tuple(notes)
    )


def _sizes(
    folder: ModelFolder, dtype: str, model: EmbeddingModel | None = None
) -> Iterator[TensorReport]:
    """Yield what becomes of each tensor of the folder's files.

    Parameters
    ----------
    model : the folder's model as ``dtype``; without it, sizes only
    """
    files = [MappedFile(path) for path in folder.weight_files]
    prefix = _prefix(folder, [name for file in files for name in file])
    places, used = family_places(folder), 0
    full = EmbeddingModel.load(folder.path, dtype="f32") if model and dtype == "int8" else None
    for file in files:
        for name in file:
            old, shape, size = file_dtype(file, name), file.shape(name), file.raw(name).nbytes
            short = name.removeprefix(prefix)
            if short.startswith(folder.architecture.family.ignored):
                reason = "the encoder has no use for it"
                yield TensorReport(name, shape, old, "", size, 0, "removed", reason)
                continue
            reason = reason_to_keep(name, shape, old, Request(dtype))
            cost = Rounding()
            if full is not None and model is not None and short in places:
                before, after = (m._encoder.tensor(*places[short]) for m in (full, model))
                add_difference(before, after, cost)
            elif model is not None and not reason and dtype != "int8":
                cost = measure_file(file, name, dtype)
            figures = cost.figures() if cost.count and not reason else {}
            report = tensor_report(name, shape, old, size, dtype, reason, figures)
            used += report.bytes_after
            yield report
    yield rest_report(dtype, new_encoder(folder, dtype).weight_bytes - used)


def _prefix(folder: ModelFolder, names: list[str]) -> str:
    """Return the prefix before the family's tensor names."""
    anchor = folder.architecture.family.anchor
    return next((name.removesuffix(anchor) for name in names if name.endswith(anchor)), "")
