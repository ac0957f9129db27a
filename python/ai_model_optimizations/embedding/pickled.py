"""Pickles of EmbeddingModels: the path of the packed file, or else its content."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..devices import parse_device
from ..errors import ModelFormatError
from .model import EmbeddingModel, Options
from .packed_file import FILE_NAME, PackedFile, find_packed
from .packed_model import read_parts, write_parts
from .truncation import check_policy


def to_bytes(model: EmbeddingModel, file: Path | None = None) -> tuple[str, Any, str]:
    """Return what a pickle keeps: the packed file's path and hash, or else its content.

    Parameters
    ----------
    file : a packed file of this model; None asks the model for one
    """
    packed = _own_file(model) if file is None else file
    if packed is not None:
        return "file", str(packed.resolve()), _hash(packed)
    with tempfile.TemporaryDirectory(prefix="aimo-") as name:
        file = Path(name) / FILE_NAME
        write_parts(file, model._parts(), mode=0o600)
        return "bytes", file.read_bytes(), str(model.path)


def from_bytes(
    content: tuple[str, Any, str],
    options: tuple[int | None, str] = (None, "warn"),
    device: str = "cpu",
) -> EmbeddingModel:
    """Return the model that :func:`to_bytes` described; a file is mapped.

    Parameters
    ----------
    options : ``truncate_dim`` and ``on_truncate`` of ``EmbeddingModel.load``

    Raises
    ------
    ModelFormatError
        If the file has been replaced since the model was pickled.
    FileNotFoundError
        If it is gone.
    """
    kind, value, rest = content
    if kind == "file":
        if not Path(value).is_file():
            raise FileNotFoundError(f"the packed model of this pickle is gone: {value}")
        if _hash(Path(value)) != rest:
            raise ModelFormatError(f"{value}: another model lies here than when it was pickled")
        return EmbeddingModel.load(
            value, device=device, truncate_dim=options[0], on_truncate=options[1]
        )
    where, narrow, policy = parse_device(device), options[0], check_policy(options[1])
    with tempfile.TemporaryDirectory(prefix="aimo-") as name:
        file = Path(name) / FILE_NAME
        file.write_bytes(value)
        # The mapping stays valid after the name is gone.
        parts = read_parts(file, device=where)
    folder = replace(parts.folder, path=Path(rest))
    return EmbeddingModel(*parts._replace(folder=folder), Options(narrow, policy), where)


def _own_file(model: EmbeddingModel) -> Path | None:
    """Return the packed file that the model was loaded from, unless another model replaced it."""
    try:
        path = find_packed(model.path)
        if path is None:
            return None
        file = PackedFile(path)
    except (OSError, ModelFormatError):
        return None
    return path if (file.dtype, file.space_id) == (model.dtype, model._space_id) else None


def _hash(path: Path) -> str:
    """Identify a packed file by its header, which has a checksum of the rest."""
    metadata = PackedFile(path)._file.metadata
    content = json.dumps(metadata, sort_keys=True) + str(path.stat().st_size)
    return hashlib.sha256(content.encode()).hexdigest()
