"""Tensors of safetensors files, read where they lie."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..errors import ModelFormatError

_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}


class TensorFile:
    """One mapped safetensors file: names, shapes and float32 copies of its tensors.

    The ``safetensors`` library checks the file (header, offsets, lengths) before anything is read;
    the mapping here only saves the copy that it would make of every tensor.

    Raises
    ------
    ModelFormatError
        If the file is truncated or is no safetensors file.
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
        except (SafetensorError, ValueError) as error:
            raise ModelFormatError(f"{path}: not a valid safetensors file: {error}") from error
        #: The file's own key-value pairs.
        self.metadata: dict[str, str] = header.pop("__metadata__", {})
        self._start = 8 + size
        self._entries: dict[str, dict[str, Any]] = header
        self._map: NDArray[np.uint8] | None = np.memmap(path, dtype=np.uint8, mode="r")

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._map = None

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

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
        assert self._map is not None, "the file is closed"
        begin, end = self._entries[name]["data_offsets"]
        return self._map[self._start + begin : self._start + end]

    def read(self, name: str) -> NDArray[np.float32]:
        """Return a tensor as float32; a float32 one is a view of the mapped file.

        Raises
        ------
        ModelFormatError
            If its dtype is no floating-point type that weights come in.
        """
        entry = self._entries[name]
        dtype = _DTYPES.get(str(entry["dtype"]))
        if dtype is None:
            raise ModelFormatError(
                f"{self.path}: tensor {name!r} has dtype {entry['dtype']}, "
                f"expected one of {', '.join(_DTYPES)}"
            )
        values: NDArray[np.generic] = np.frombuffer(self.raw(name), dtype=dtype).reshape(
            self.shape(name)
        )
        if entry["dtype"] == "BF16":
            return _core.bf16_to_f32(values.astype(np.uint16, copy=False))
        return values.astype(np.float32, copy=False)
