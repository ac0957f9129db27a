"""Memory-mapped safetensors files: the bytes of tensors, without a copy."""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelFormatError


class MappedFile:
    """One mapped safetensors file.

    The ``safetensors`` library checks header, offsets and lengths before anything is mapped. Views
    of the file keep it mapped. If a file is truncated while it is mapped, the process crashes, as
    with any mapping; files that this package writes are replaced, never changed.

    Raises
    ------
    ModelFormatError
        If the file is truncated or is not a safetensors file; the message names it.
    OSError
        If it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = path
        try:
            with safe_open(str(path), framework="numpy"):
                pass
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size))
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (SafetensorError, ValueError, RecursionError) as error:
            raise ModelFormatError(f"{path}: not a valid safetensors file: {error}") from None
        #: The file's own key-value pairs.
        self.metadata: Mapping[str, str] = header.pop("__metadata__", {})
        self._bytes = np.frombuffer(self._map, np.uint8)
        self._start = 8 + size
        self._entries: dict[str, dict[str, Any]] = header

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return tuple(self._entries[name]["shape"])

    def dtype(self, name: str) -> str:
        """Return the dtype of a tensor as the file spells it: ``F32``, ``BF16``, ``U8``, ..."""
        return str(self._entries[name]["dtype"])

    def raw(self, name: str) -> NDArray[np.uint8]:
        """Return a tensor's bytes, a view that keeps the file mapped as long as it lives."""
        begin, end = self._entries[name]["data_offsets"]
        return self._bytes[self._start + begin : self._start + end]

    def drop_pages(self) -> None:
        """Drop the pages read so far from this process's memory; they are read again on use."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def file_chunks(
    entries: Mapping[str, tuple[str, tuple[int, ...], int]],
    blocks: Iterable[Any],
    metadata: Mapping[str, str],
    *,
    alignment: int = 64,
) -> Iterator[Any]:
    """Yield a safetensors file piece by piece, every tensor aligned.

    Parameters
    ----------
    entries : dtype as the format spells it, shape and bytes of each tensor, by name
    blocks : bytes-like pieces of the tensors' data, in the order of ``entries``; a tensor may be
        several pieces, and no piece may extend into the next tensor
    metadata : the file's key-value pairs
    alignment : tensors begin at multiples of it; ``padding`` tensors fill the gaps, which the
        format does not allow
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    sizes: list[tuple[int, int]] = []
    position = 0
    for name, (dtype, shape, size) in entries.items():
        offsets = [position, position + size]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        gap = -size % alignment
        position += size + gap
        if gap:
            offsets = [position - gap, position]
            header[f"padding.{len(sizes)}"] = {
                "dtype": "U8",
                "shape": [gap],
                "data_offsets": offsets,
            }
        sizes.append((size, gap))
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-(8 + len(head)) % math.lcm(alignment, 8))
    yield len(head).to_bytes(8, "little")
    yield head
    pieces = iter(blocks)
    for size, gap in sizes:
        while size > 0:
            piece = next(pieces)
            size -= memoryview(piece).nbytes
            yield piece
        assert size == 0, "a piece reaches into the next tensor"
        yield bytes(gap)
