"""From a model folder to packed parts, and from one storage type to another."""

from __future__ import annotations

from pathlib import Path

from ..devices import CPU
from ..errors import ModelFormatError
from .dtypes import DType
from .folder import ModelFolder
from .outliers import find_outliers
from .packed_cache import load_through_cache
from .packed_model import ModelParts, read_parts, write_parts
from .tokenization import TextTokenizer
from .weights import copy_encoder, load_encoder


def load_folder(folder: ModelFolder, dtype: DType, device: int) -> ModelParts:
    """Return the folder's model, stored as ``dtype``; mapped where ``AIMO_CACHE_DIR`` has it.

    Raises
    ------
    ModelFormatError
        If a file is damaged, contradicts another or has changed since ``folder`` was read.
    """
    space_id = folder.space_id()

    def read(path: Path) -> ModelParts:
        parts = read_parts(path, folder, device)
        if (parts.dtype, parts.space_id) != (dtype, space_id):
            raise ModelFormatError(f"{path}: another model's file under this name")
        return parts

    return load_through_cache(
        folder,
        dtype,
        space_id,
        pack=lambda: _pack(folder, dtype, space_id, device),
        write=lambda parts, path: write_parts(path, parts, mode=0o600),
        read=read,
    )


def convert(parts: ModelParts, dtype: DType, *, source: int, device: int) -> ModelParts:
    """Return the same model with its weights stored as another type.

    Parameters
    ----------
    source : the device on which the parts are
    device : the one for the result
    """
    outliers = None
    if dtype == "int8":
        on_cpu = parts.encoder
        if source != CPU:
            on_cpu = copy_encoder(parts.folder, parts.encoder, parts.dtype)
        frame = parts.tokenizer.pack([""]).token_ids
        words = int(parts.folder.architecture.sizes["vocabulary"])
        outliers = find_outliers(on_cpu, words, frame)
    encoder = copy_encoder(parts.folder, parts.encoder, dtype, device, outliers)
    return parts._replace(encoder=encoder, dtype=dtype)


def _pack(folder: ModelFolder, dtype: DType, space_id: str, device: int) -> ModelParts:
    if dtype == "int8":
        whole = _pack(folder, "f32", space_id, CPU)
        return convert(whole, dtype, source=CPU, device=device)
    encoder = load_encoder(folder, dtype, device)
    tokenizer = TextTokenizer(
        folder.tokenizer,
        max_length=folder.max_seq_length,
        vocabulary=int(folder.architecture.sizes["vocabulary"]),
        do_lower_case=folder.do_lower_case,
    )
    folder.check_unchanged()
    return ModelParts(encoder, tokenizer, folder, dtype, space_id)
