"""What an EmbeddingModel is made of, from and to a packed file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from .. import _core
from .._files import is_aside
from ..devices import CPU
from ..errors import ModelFormatError
from .dtypes import DType, resolve_dtype
from .families import FAMILIES, Architecture
from .folder import ModelFolder, read_truncate_dim
from .modules import Dense, Head
from .packed_file import FILE_NAME, PackedFile, write_packed
from .prompts import read_prompts
from .tokenization import PackedTokenizer, TextTokenizer
from .weights import new_encoder

#: The settings that a packed file keeps, their types, and what older files without them mean.
_SETTINGS: Mapping[str, tuple[type, Any]] = {
    "pooling": (str, None),  # several are joined by "+"
    "normalize": (bool, None),
    "max_seq_length": (int, None),
    "do_lower_case": (bool, None),
    "include_prompt": (bool, True),
    "dense": (list, []),
    "prompts": (dict, {}),
}


class ModelParts(NamedTuple):
    """Everything that an EmbeddingModel holds."""

    encoder: _core.Encoder
    tokenizer: TextTokenizer
    folder: ModelFolder
    dtype: DType
    #: Of whole vectors.
    space_id: str


def write_parts(path: Path, parts: ModelParts, *, mode: int = 0o666) -> None:
    """Write a packed file; OSError if it cannot be written, and nothing is left behind."""
    architecture = parts.folder.architecture
    family = next(name for name, row in FAMILIES.items() if row is architecture.family)
    model = {
        "name": parts.folder.path.resolve().name,
        "family": family,
        "sizes": dict(architecture.sizes),
        **_settings_of(parts.folder),
    }
    metadata = {
        "dtype": parts.dtype,
        "space_id": parts.space_id,
        "model": json.dumps(model),
    }
    write_packed(path, parts.encoder, parts.tokenizer.packed().content, metadata, mode=mode)


def read_parts(path: Path, folder: ModelFolder | None = None, device: int = CPU) -> ModelParts:
    """Map a packed file.

    Parameters
    ----------
    folder : the folder that the model was packed from; None makes one from the file's metadata
    device : where to compute: :data:`~ai_model_optimizations.devices.CPU`, or a CUDA device

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
        encoder.seal(device)
    except ModelFormatError as error:
        raise ModelFormatError(f"{path}: {error}") from None
    tokenizer = TextTokenizer(
        path,
        max_length=folder.max_seq_length,
        vocabulary=int(folder.architecture.sizes["vocabulary"]),
        do_lower_case=folder.do_lower_case,
        packed=PackedTokenizer(file.tokenizer),
    )
    return ModelParts(encoder, tokenizer, folder, resolve_dtype(file.dtype), file.space_id)


def _folder_of(file: PackedFile) -> ModelFolder:
    family = FAMILIES.get(str(file.model.get("family")))
    sizes = file.model.get("sizes")
    if family is None or not isinstance(sizes, dict):
        raise ModelFormatError(
            f"{file.path}: metadata 'model': family {file.model.get('family')!r} "
            f"with sizes {sizes!r} is not known"
        )
    settings: dict[str, Any] = {}
    for name, (kind, default) in _SETTINGS.items():
        settings[name] = file.model.get(name, default)
        if type(settings[name]) is not kind:
            raise ModelFormatError(
                f"{file.path}: metadata 'model': {name} must be {kind.__name__}, "
                f"got {settings[name]!r}"
            )
    path = file.path.parent if file.path.name == FILE_NAME else file.path
    folder = ModelFolder(
        path=path,
        transformer=path,
        architecture=Architecture(family, sizes),
        head=Head(
            poolings=tuple(settings["pooling"].split("+")),
            include_prompt=settings["include_prompt"],
            dense=tuple(_dense_of(file, layer) for layer in settings["dense"]),
            normalize=settings["normalize"],
        ),
        prompts=read_prompts(file.model, file.path),
        weights=(file.path,),
        shards={},
        max_seq_length=settings["max_seq_length"],
        do_lower_case=settings["do_lower_case"],
    )
    return replace(folder, truncate_dim=read_truncate_dim(file.model, file.path, folder.dimension))


def _settings_of(folder: ModelFolder) -> dict[str, Any]:
    head = folder.head
    return {
        "pooling": "+".join(head.poolings),
        "normalize": head.normalize,
        "max_seq_length": folder.max_seq_length,
        "do_lower_case": folder.do_lower_case,
        "include_prompt": head.include_prompt,
        "dense": [[layer.inputs, layer.outputs, layer.activation] for layer in head.dense],
        "prompts": dict(folder.prompts.texts),
        "default_prompt_name": folder.prompts.default_name,
        "truncate_dim": folder.truncate_dim,
    }


def _dense_of(file: PackedFile, layer: object) -> Dense:
    if not isinstance(layer, list) or [type(part) for part in layer] != [int, int, str]:
        raise ModelFormatError(
            f"{file.path}: metadata 'model': dense must hold [inputs, outputs, activation], "
            f"got {layer!r}"
        )
    inputs, outputs, activation = layer
    return Dense(file.path, inputs, outputs, activation, bias=True)


def _encoder_of(file: PackedFile, folder: ModelFolder) -> _core.Encoder:
    sizes = dict(folder.architecture.sizes)
    if not isinstance(sizes.get("layers"), int) or sizes["layers"] > len(file):
        raise ModelFormatError(
            f"{file.path}: {sizes.get('layers')!r} layers in {len(file)} tensors"
        )
    try:
        return new_encoder(folder, file.dtype)
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
    names = {entry.name for entry in folder.iterdir()} if folder.exists() else set()
    # What another process is writing at the moment, or was writing when it was killed.
    others = {name for name in names - {FILE_NAME} if not is_aside(name, FILE_NAME)}
    if others:
        raise FileExistsError(
            f"path: {folder} has other files in it ({sorted(others)[0]}); "
            "expected a folder that is new, empty or holds a packed model"
        )
