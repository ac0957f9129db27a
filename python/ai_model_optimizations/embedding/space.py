"""The identity of a vector space, cheap to compute."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .folder import ModelFolder

#: How many pieces of a weight file go into its fingerprint, and how long each is.
_SAMPLES, _SAMPLE_BYTES = 64, 4096
#: A file with a longer header than this is not a safetensors file.
_LONGEST_HEADER = 100_000_000


def narrowed(space_id: str, dimension: int) -> str:
    """Identify the space of the first ``dimension`` elements of another space's vectors."""
    return hashlib.sha256(f"{space_id} {dimension}".encode()).hexdigest()[:32]


def space_id_of(folder: ModelFolder) -> str:
    """Identify the space of a folder's whole vectors.

    A SHA-256 over the weights, those of dense layers too (header, size and samples: it must be
    cheap), the tokenizer, the pooling, the normalisation and the output dimension. Precision and
    prompt are no part of it.
    """
    digest = hashlib.sha256()
    for file in folder.weight_files:
        _add_weights(digest, file)
    digest.update(folder.tokenizer.read_bytes())
    head = folder.head
    activations = [layer.activation for layer in head.dense]
    rest = (head.poolings, head.include_prompt, activations, head.normalize, folder.dimension)
    digest.update(repr((*rest, folder.do_lower_case)).encode())
    return digest.hexdigest()[:32]


def _add_weights(digest: hashlib._Hash, path: Path) -> None:
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
        if header <= _LONGEST_HEADER:
            digest.update(file.read(header))
        size = file.seek(0, 2)
        digest.update(size.to_bytes(8, "little"))
        for i in range(_SAMPLES):
            file.seek(max(0, size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
