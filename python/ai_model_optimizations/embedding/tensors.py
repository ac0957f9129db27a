"""Reads tensors from safetensors files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..errors import ModelFormatError

_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}


class TensorFile:
    """One safetensors file: names, shapes and float32 copies of its tensors.

    The ``safetensors`` library checks the file (length of the header, offsets, overlaps, lengths)
    before anything is read. :meth:`read` copies, because truncating a mapped file would crash the
    process.

    Raises
    ------
    ModelFormatError
        If the file is truncated or is not a safetensors file.
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
        except FileNotFoundError:
            raise ModelFormatError(f"{path}: the file is missing") from None
        except (SafetensorError, ValueError, RecursionError, OSError) as error:
            raise ModelFormatError(f"{path}: not a valid safetensors file: {error}") from error
        header.pop("__metadata__", None)
        self._file: FileIO | None = None
        self._start = 8 + size
        self._entries: dict[str, dict[str, Any]] = header

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        self._file = self._map = None

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return tuple(self._entries[name]["shape"])

    def check_shape(self, name: str, expected: tuple[int, ...]) -> None:
        """Raise ModelFormatError unless the tensor has this shape."""
        if self.shape(name) != expected:
            raise ModelFormatError(
                f"{self.path}: tensor {name!r}: expected shape {expected} from config.json, "
                f"got {self.shape(name)}"
            )

    def read(self, name: str) -> NDArray[np.float32]:
        """Return a tensor as float32; the file stays open until :meth:`close`.

        Raises
        ------
        ModelFormatError
            If its dtype is not a floating-point type for weights, or the file has become shorter.
        """
        entry = self._entries[name]
        dtype = _DTYPES.get(str(entry["dtype"]))
        if dtype is None:
            raise ModelFormatError(
                f"{self.path}: tensor {name!r} has dtype {entry['dtype']}, "
                f"expected one of {', '.join(_DTYPES)}"
            )
        begin, end = entry["data_offsets"]
        shape = self.shape(name)
        if end - begin != math.prod(shape) * np.dtype(dtype).itemsize:
            raise ModelFormatError(f"{self.path}: tensor {name!r}: length and shape differ")
        values = np.empty(shape, dtype=np.dtype(dtype).newbyteorder("<"))
        self._read_into(values.reshape(-1).view(np.uint8), self._start + begin, name)
        if entry["dtype"] == "BF16":
            return _core.bf16_to_f32(values.astype(np.uint16, copy=False))
        if entry["dtype"] == "F16":
            return _core.f16_to_f32(values.astype(np.float16, copy=False))
        # The core refuses values that are not finite; an f64 overflow becomes an infinity here.
        with np.errstate(over="ignore"):
            return values.astype(np.float32, copy=False)

    def _read_into(self, buffer: NDArray[np.uint8], at: int, name: str) -> None:
        if self._file is None:
            self._file = self.path.open("rb", buffering=0)
        self._file.seek(at)
        done = 0
        while done < len(buffer):
            count = self._file.readinto(buffer[done:].data)
            if not count:
                raise ModelFormatError(
                    f"{self.path}: tensor {name!r} ends early; the file changed while it was read"
                )
            done += count
