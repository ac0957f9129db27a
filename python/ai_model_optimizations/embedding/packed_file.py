"""Packed models: one safetensors file with everything that makes up a model.

The weights have the same layout as in memory, so a file is mapped and nothing is read, converted or
copied: processes share the pages. Each weight is a tensor whose dtype and shape are those of the
packed layout; the tokenizer is one more, of bytes, so that a model appears with one rename. Every
tensor begins at a multiple of 64 bytes; where one ends elsewhere, a ``padding`` tensor follows,
because safetensors allows no gaps. The metadata holds the rest:

``format``           ``ai-model-optimizations packed model``
``layout_version``   of the weights' layout; a newer one is refused
``dtype``            of matrices and tables; vectors are f32
``space_id``         hash of the source's weights, tokenizer, pooling and normalisation
``model``            JSON: family, sizes, pooling, limits
``checksum``         CRC-32 over a sample of every tensor
``created_by``       this package's version
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from .._files import write_whole
from .._version import __version__
from ..errors import ModelFormatError
from .mapped_file import MappedFile, file_chunks

FORMAT = "ai-model-optimizations packed model"
FILE_NAME = "packed.safetensors"

_CODES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "int8": "I8"}
_TOKENIZER = "tokenizer.json"

#: The checksum covers one piece of each tensor per this many bytes.
_SAMPLE_BYTES, _SAMPLE_STRIDE = 256, 1 << 18


def find_packed(path: Path) -> Path | None:
    """Return the packed file that ``path`` is or contains; None if there is none."""
    if path.is_dir():
        path = path / FILE_NAME
    return path if path.suffix == ".safetensors" and path.is_file() else None


def is_packed(path: Path) -> bool:
    """Whether ``path`` is a packed model or a folder with one; ModelFormatError when damaged."""
    file = find_packed(path)
    return file is not None and (
        file.name == FILE_NAME or MappedFile(file).metadata.get("format") == FORMAT
    )


def write_packed(
    path: Path,
    encoder: _core.Encoder,
    tokenizer: bytes,
    metadata: Mapping[str, str],
    *,
    mode: int = 0o666,
) -> int:
    """Write a packed model; it appears whole or not at all.

    Parameters
    ----------
    tokenizer : a tokenizer.json
    metadata : ``dtype``, ``space_id`` and ``model``
    mode : permissions, reduced by the process's umask

    Returns
    -------
    The bytes written.

    Raises
    ------
    OSError
        If it cannot be written; nothing is left behind.
    """
    blocks: dict[str, NDArray[np.uint8]] = {}
    entries: dict[str, tuple[str, tuple[int, ...], int]] = {}
    for name, weight, layer, code, shape in _weights(encoder):
        blocks[name] = block = encoder.weight(weight, layer)
        entries[name] = (code, shape, len(block))
    blocks[_TOKENIZER] = np.frombuffer(tokenizer, np.uint8)
    entries[_TOKENIZER] = ("U8", (len(tokenizer),), len(tokenizer))
    everything = {
        "format": FORMAT,
        "layout_version": str(_core.encoder_layout_version()),
        "created_by": __version__,
        "checksum": f"{_checksum(blocks):08x}",
        **metadata,
    }
    return write_whole(path, file_chunks(entries, blocks.values(), everything), mode=mode)


def _weights(encoder: _core.Encoder) -> Iterator[tuple[str, str, int, str, tuple[int, ...]]]:
    """Yield each packed weight: its name in a file and in the core, layer, dtype and shape."""
    for weight, layers, dtype, shape, _ in encoder.weights():
        for layer in range(max(1, layers)):
            name = f"layers.{layer}.{weight}" if layers else f"{_group(weight)}.{weight}"
            yield name, weight, layer, _CODES[dtype], shape


def _group(weight: str) -> str:
    return "head" if weight.startswith("dense_") else "embeddings"


def _checksum(blocks: Mapping[str, NDArray[np.uint8]]) -> int:
    """Return a CRC-32 over samples of all blocks: cheap, and detects a file with holes."""
    checksum = 0
    for name, array in blocks.items():
        block = array.data
        checksum = zlib.crc32(name.encode(), checksum)
        for start in range(0, len(block), _SAMPLE_STRIDE):
            checksum = zlib.crc32(block[start : start + _SAMPLE_BYTES], checksum)
        checksum = zlib.crc32(block[-_SAMPLE_BYTES:], checksum)
    return checksum


class PackedFile:
    """A mapped packed model; it stays mapped as long as its weights are in use.

    Raises
    ------
    ModelFormatError
        If the file is damaged, is not a packed model, or has a layout that this package does not
        know; the message names it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = MappedFile(path)
        metadata = self._file.metadata
        if metadata.get("format") != FORMAT:
            raise ModelFormatError(f"{path}: not a packed model")
        version = metadata.get("layout_version")
        known = _core.encoder_layout_version()
        if version != str(known):
            raise ModelFormatError(
                f"{path}: the weights have layout version {version}, this package reads {known}; "
                "use the version of ai-model-optimizations that wrote the file "
                f"({metadata.get('created_by')}), or save the source model again with this one"
            )
        self.dtype = self._text("dtype")
        self.space_id = self._text("space_id")
        self.model = self._object("model")

    def _text(self, key: str) -> str:
        value = self._file.metadata.get(key)
        if value is None:
            raise ModelFormatError(f"{self.path}: the metadata has no {key!r}")
        return value

    def _object(self, key: str) -> dict[str, Any]:
        try:
            value = json.loads(self._text(key))
        except (ValueError, RecursionError) as error:
            raise ModelFormatError(f"{self.path}: metadata {key!r}: {error}") from None
        if not isinstance(value, dict):
            raise ModelFormatError(f"{self.path}: metadata {key!r} is no object")
        return value

    def __len__(self) -> int:
        return len(self._file)

    @property
    def tokenizer(self) -> bytes:
        """The tokenizer.json."""
        return self._block(_TOKENIZER, "U8").tobytes()

    def map_into(self, encoder: _core.Encoder) -> None:
        """Give every weight to the encoder without a copy, after checking samples of all.

        Raises
        ------
        ModelFormatError
            If one is missing or is not what the encoder expects; the message names it.
        """
        blocks = {}
        for name, weight, layer, code, shape in _weights(encoder):
            blocks[name] = block = self._block(name, code, shape)
            try:
                encoder.map_weight(weight, layer, block)
            except ValueError as error:
                raise ModelFormatError(f"{self.path}: tensor {name!r}: {error}") from None
        blocks[_TOKENIZER] = self._block(_TOKENIZER, "U8")
        if f"{_checksum(blocks):08x}" != self._file.metadata.get("checksum"):
            raise ModelFormatError(f"{self.path}: the checksum does not match: the file is damaged")

    def _block(
        self, name: str, dtype: str, shape: tuple[int, ...] | None = None
    ) -> NDArray[np.uint8]:
        if name not in self._file:
            raise ModelFormatError(f"{self.path}: tensor {name!r} is missing")
        found = self._file.dtype(name), self._file.shape(name)
        expected = dtype, shape if shape is not None else found[1]
        if found != expected:
            raise ModelFormatError(
                f"{self.path}: tensor {name!r}: expected {expected[0]} {expected[1]}, "
                f"got {found[0]} {found[1]}"
            )
        return self._file.raw(name)
