"""What an EmbeddingModel is made of, from and to a packed file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .. import _core
from ..errors import ModelFormatError
from .families import FAMILIES, Architecture
from .folder import ModelFolder
from .packed_file import FILE_NAME, PackedFile, write_packed
from .tokenization import PackedTokenizer, TextTokenizer

#: The settings of a ModelFolder that a packed file keeps, and their types.
_SETTINGS: Mapping[str, type] = {
    "pooling": str,
    "normalize": bool,
    "max_seq_length": int,
    "do_lower_case": bool,
}


class ModelParts(NamedTuple):
    """Everything that an EmbeddingModel holds."""

    encoder: _core.Encoder
    tokenizer: TextTokenizer
    folder: ModelFolder
    dtype: str
    space_id: str


def write_parts(path: Path, parts: ModelParts, *, mode: int = 0o666) -> None:
    """Write a packed file; OSError when it cannot be written, and nothing is left then."""
    architecture = parts.folder.architecture
    family = next(name for name, row in FAMILIES.items() if row is architecture.family)
    model = {
        "name": parts.folder.path.resolve().name,
        "family": family,
        "sizes": dict(architecture.sizes),
        **{name: getattr(parts.folder, name) for name in _SETTINGS},
    }
    tokenizer = parts.tokenizer.packed()
    metadata = {
        "dtype": parts.dtype,
        "space_id": parts.space_id,
        "model": json.dumps(model),
        "tokenizer": json.dumps({"cuts_early": tokenizer.cuts_early}),
    }
    write_packed(path, parts.encoder, tokenizer.content, metadata, mode=mode)


def read_parts(path: Path, folder: ModelFolder | None = None) -> ModelParts:
    """Map a packed file.

    Parameters
    ----------
    folder : the folder that the model was packed from; None makes one of what the file says

    Raises
    ------
    ModelFormatError
        If the file is damaged or has an unknown layout; the message names it.
    """
    file = PackedFile(path)
    if folder is None:
        folder = _folder_of(file)
    encoder = _encoder_of(file, folder)
    file.map_into(encoder)
    try:
        encoder.seal()
    except ModelFormatError as error:
        raise ModelFormatError(f"{path}: {error}") from None
    tokenizer = TextTokenizer(
        path,
        max_length=folder.max_seq_length,
        vocabulary=int(folder.architecture.sizes["vocabulary"]),
        do_lower_case=folder.do_lower_case,
        packed=PackedTokenizer(file.tokenizer, bool(file.tokenizer_facts.get("cuts_early"))),
    )
    return ModelParts(encoder, tokenizer, folder, file.dtype, file.space_id)


def _folder_of(file: PackedFile) -> ModelFolder:
    family = FAMILIES.get(str(file.model.get("family")))
    sizes = file.model.get("sizes")
    if family is None or not isinstance(sizes, dict):
        raise ModelFormatError(
            f"{file.path}: metadata 'model': family {file.model.get('family')!r} "
            f"with sizes {sizes!r} is not known"
        )
    settings: dict[str, Any] = {}
    for name, kind in _SETTINGS.items():
        settings[name] = file.model.get(name)
        if type(settings[name]) is not kind:
            raise ModelFormatError(
                f"{file.path}: metadata 'model': {name} must be {kind.__name__}, "
                f"got {settings[name]!r}"
            )
    path = file.path.parent if file.path.name == FILE_NAME else file.path
    return ModelFolder(path=path, architecture=Architecture(family, sizes), **settings)


def _encoder_of(file: PackedFile, folder: ModelFolder) -> _core.Encoder:
    sizes = dict(folder.architecture.sizes)
    if not isinstance(sizes.get("layers"), int) or sizes["layers"] > len(file):
        raise ModelFormatError(
            f"{file.path}: {sizes.get('layers')!r} layers in {len(file)} tensors"
        )
    try:
        return _core.Encoder(dtype=file.dtype, pooling=folder.pooling, **sizes)
    except (TypeError, ValueError, OverflowError) as error:
        raise ModelFormatError(f"{file.path}: metadata 'model': {error}") from None


def check_target(folder: Path) -> None:
    """Refuse to save into a folder that holds anything but a packed model.

    Raises
    ------
    FileExistsError
        If ``folder`` is a file or has other files in it.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"path: {folder} is a file; expected a folder, new or empty")
    others = {entry.name for entry in folder.iterdir()} - {FILE_NAME} if folder.exists() else set()
    if others:
        raise FileExistsError(
            f"path: {folder} has other files in it ({sorted(others)[0]}); "
            "expected a folder that is new, empty or holds a packed model"
        )
