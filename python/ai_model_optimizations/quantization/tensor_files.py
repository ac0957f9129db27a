"""Safetensors files in 16 bits: read and written tensor by tensor, so that memory stays small."""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._files import sync_folder, write_whole
from ..embedding.mapped_file import MappedFile, file_chunks
from ..errors import ModelFormatError, UnsupportedError
from .report import QuantizationReport, TensorReport, resident_bytes
from .request import Request
from .rounding import Rounding, measure, narrow
from .tensors import (
    Tensors,
    array_dtype,
    as_bf16,
    dtype_name,
    notes,
    numpy_dtype,
    reason_to_keep,
    tensor_report,
)

#: The format's dtypes: our name and numpy's. bf16 comes as bits, which ml_dtypes makes numbers.
_DTYPES: Mapping[str, tuple[str, str]] = {
    "F64": ("f64", "<f8"),
    "F32": ("f32", "<f4"),
    "F16": ("f16", "<f2"),
    "BF16": ("bf16", "<u2"),
    "I64": ("i64", "<i8"),
    "I32": ("i32", "<i4"),
    "I16": ("i16", "<i2"),
    "I8": ("i8", "i1"),
    "U64": ("u64", "<u8"),
    "U32": ("u32", "<u4"),
    "U16": ("u16", "<u2"),
    "U8": ("u8", "u1"),
    "BOOL": ("bool", "?"),
}
_NAMES = {ours: code for code, (ours, _) in _DTYPES.items()}
_CODES = {"f16": "F16", "bf16": "BF16"}
#: Elements that are converted at a time.
_PIECE = 1 << 20


class _Planned(NamedTuple):
    """A tensor of a file, and how it will be stored."""

    file: MappedFile
    name: str
    report: TensorReport


def tensor_paths(path: Path) -> list[Path]:
    """Return the safetensors files that ``path`` is or holds.

    Raises
    ------
    FileNotFoundError
        If there is no such file or folder.
    UnsupportedError
        If the model is in another format; the message says which to use.
    """
    if not path.exists():
        raise FileNotFoundError(f"model: there is no file or folder at {path}")
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    found = [file for file in files if file.suffix == ".safetensors"]
    if found:
        return found
    suffixes = {file.suffix for file in files}
    if ".onnx" in suffixes:
        raise UnsupportedError(
            f"model: {path} is an ONNX model, which is not supported; "
            "use onnxruntime.quantization, or give the safetensors folder it was exported from"
        )
    if suffixes & {".bin", ".pt", ".pth", ".ckpt"}:
        raise UnsupportedError(
            f"model: {path} holds pickled weights, which are not read; "
            "load the model and save it with save_pretrained(path, safe_serialization=True)"
        )
    raise UnsupportedError(f"model: {path} holds no safetensors file")


def quantize_tensors(path: Path, request: Request) -> tuple[Tensors, QuantizationReport]:
    """Return the tensors of a file or folder as arrays; matrices and tables in 16 bits."""
    dtype = numpy_dtype(request)
    before = None if request.dry_run else resident_bytes()
    planned = _plan(path, dtype, request)
    result: Tensors = {}
    if not request.dry_run:
        for tensor in planned:
            result[tensor.name] = _read(tensor)
    after = None if request.dry_run else resident_bytes()
    return result, _report(path, dtype, planned, before, after)


def quantize_files(source: Path, target: Path, request: Request) -> QuantizationReport:
    """Write the tensors of a file or folder to another, with matrices and tables in 16 bits.

    Parameters
    ----------
    source : a safetensors file, or a folder, whose other files are copied
    target : must not exist, or be an empty folder; it appears whole or not at all

    Raises
    ------
    FileExistsError
        If ``target`` exists and is no empty folder.
    OSError
        If it cannot be written; nothing is left then.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(f"path: {target} exists and is no empty folder")
    dtype = array_dtype(request)
    before = None if request.dry_run else resident_bytes()
    planned = _plan(source, dtype, request)
    if request.dry_run:
        return _report(source, dtype, planned, None, None)
    if source.is_dir():
        _write_folder(source, target, planned)
    else:
        write_whole(target, _chunks(source, planned))
    return _report(source, dtype, planned, before, resident_bytes())


def write_tensors(tensors: Tensors, path: Path) -> Path:
    """Write named arrays to a safetensors file; it appears whole or not at all.

    Raises
    ------
    TypeError
        If a value is no numpy array, or of a dtype that the format lacks; the message names it.
    IsADirectoryError
        If ``path`` is a folder.
    OSError
        If it cannot be written; nothing is left then.
    """
    if path.is_dir():
        raise IsADirectoryError(f"path: {path} is a folder; expected the name of a file")
    for name, values in tensors.items():
        if not isinstance(values, np.ndarray):
            raise TypeError(f"model[{name!r}]: expected a numpy array, got {type(values).__name__}")
        if dtype_name(values) not in _NAMES:
            raise TypeError(f"model[{name!r}]: a file cannot hold the dtype {values.dtype}")
    # Wide elements first, so that all are aligned without a tensor of padding between them.
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].itemsize))
    entries = {
        name: (_NAMES[dtype_name(values)], values.shape, values.nbytes)
        for name, values in ordered.items()
    }
    write_whole(path, file_chunks(entries, _array_blocks(ordered), {}, alignment=1))
    return path


def _array_blocks(tensors: Tensors) -> Iterator[NDArray[np.uint8]]:
    for values in tensors.values():
        little = values.astype(values.dtype.newbyteorder("<"), order="C", copy=False)
        if little.size:
            yield little.reshape(-1).view(np.uint8)


def measure_file(file: MappedFile, name: str, dtype: str) -> Rounding:
    """Count what rounding a tensor would do, without loading it whole."""
    result = Rounding()
    for piece in _pieces(file, name):
        measure(piece, dtype, result)
    return result


def file_dtype(file: MappedFile, name: str) -> str:
    """Return our name of a tensor's dtype."""
    return _DTYPES.get(file.dtype(name), (file.dtype(name).lower(), ""))[0]


def _plan(path: Path, dtype: str, request: Request) -> list[_Planned]:
    files = [MappedFile(file) for file in tensor_paths(path)]
    names = [name for file in files for name in file]
    if len(names) != len(set(names)):
        raise ModelFormatError(f"{path}: two of its files have tensors of the same name")
    if not names:
        raise ModelFormatError(f"{path}: there is no tensor in it")
    request.check_skip(names)
    planned = []
    for file in files:
        for name in file:
            old, shape = file_dtype(file, name), file.shape(name)
            reason = reason_to_keep(name, shape, old, request)
            figures: dict[str, Any] = {}
            if not reason and not request.dry_run:
                rounding = measure_file(file, name, dtype)
                reason, figures = rounding.problem(dtype), rounding.figures()
            size = file.raw(name).nbytes
            report = tensor_report(name, shape, old, size, dtype, reason, figures)
            planned.append(_Planned(file, name, report))
    return planned


def _report(
    path: Path, dtype: str, planned: list[_Planned], before: int | None, after: int | None
) -> QuantizationReport:
    reports = tuple(tensor.report for tensor in planned)
    kind = "folder" if path.is_dir() else "file"
    return QuantizationReport(
        f"safetensors {kind}", dtype, reports, before, after, None, notes(reports)
    )


def _pieces(file: MappedFile, name: str) -> Iterator[NDArray[Any]]:
    """Yield a tensor's values, flat; pages that were read are dropped again."""
    values = file.raw(name).view(_DTYPES[file.dtype(name)][1])
    for start in range(0, len(values), _PIECE):
        yield values[start : start + _PIECE]
        file.drop_pages()


def _read(tensor: _Planned) -> NDArray[Any]:
    """Return a tensor as an array of its own, converted as planned."""
    file, name, report = tensor
    code = file.dtype(name)
    if code not in _DTYPES:
        raise UnsupportedError(f"{file.path}: tensor {name!r}: numpy has no dtype {code}")
    bits = {"f16": np.float16, "bf16": np.uint16}
    converts = report.action == "quantized"
    out = np.empty(report.shape, bits[report.dtype_after] if converts else _DTYPES[code][1])
    flat, position = out.reshape(-1), 0
    for piece in _pieces(file, name):
        new = narrow(piece, report.dtype_after) if converts else piece
        flat[position : position + len(new)] = new
        position += len(new)
    return as_bf16(out) if report.dtype_after == "bf16" else out


def _chunks(path: Path, planned: list[_Planned]) -> Iterator[Any]:
    """Yield the new form of the safetensors file at ``path``."""
    tensors = [tensor for tensor in planned if tensor.file.path == path]
    tensors.sort(key=_width, reverse=True)  # as in write_tensors
    entries = {}
    for file, name, report in tensors:
        code = _CODES[report.dtype_after] if report.action == "quantized" else file.dtype(name)
        entries[name] = (code, report.shape, report.bytes_after)
    return file_chunks(entries, _converted(tensors), tensors[0].file.metadata, alignment=1)


def _width(tensor: _Planned) -> int:
    """Bytes of an element in the new file."""
    return tensor.report.bytes_after // max(1, math.prod(tensor.report.shape))


def _converted(tensors: list[_Planned]) -> Iterator[Any]:
    for file, name, report in tensors:
        if report.action == "quantized":
            for piece in _pieces(file, name):
                yield narrow(piece, report.dtype_after)
        else:
            raw = file.raw(name)
            for start in range(0, len(raw), 4 * _PIECE):
                yield raw[start : start + 4 * _PIECE]
                file.drop_pages()


def _write_folder(source: Path, target: Path, planned: list[_Planned]) -> None:
    aside = target.with_name(f"{target.name}.tmp-{os.getpid()}-{threading.get_ident()}")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copytree(source, aside, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
        for path in tensor_paths(source):
            write_whole(aside / path.name, _chunks(path, planned))
        _update_index(aside, planned)
        os.replace(aside, target)  # also replaces an empty folder
    except shutil.Error as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise OSError(f"{source} could not be copied: {error}") from None
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync_folder(target.parent)


def _update_index(folder: Path, planned: list[_Planned]) -> None:
    """Write the new size into the index of a sharded model."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        content["metadata"]["total_size"] = sum(t.report.bytes_after for t in planned)
    except (ValueError, KeyError, TypeError):
        return  # what the loader does not need is left as it is
    index.write_text(json.dumps(content, indent=2), encoding="utf-8")
