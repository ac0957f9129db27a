"""Arrays in CUDA memory, shared with torch, cupy and others through DLPack without a copy."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .devices import device_name

#: DLPack's number for the memory of a CUDA device.
DLPACK_CUDA = 2
_DLPACK_CPU = (1, 0)
#: DLPack's type code and bits.
_DLPACK_TYPES = {"float32": (2, 32), "float16": (2, 16), "bfloat16": (4, 16)}


@lru_cache(maxsize=1)
def bfloat16_dtype() -> np.dtype[Any] | None:
    """Return numpy's name for bfloat16, which ml_dtypes brings; None without it."""
    try:
        import ml_dtypes
    except ImportError:
        return None
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


class DeviceArray:
    """An array in the memory of a CUDA device.

    ``torch.from_dlpack(array)`` and ``cupy.from_dlpack(array)`` share its memory with a torch
    tensor or a cupy array; :meth:`numpy` copies it to the host. The memory is freed when the array
    and everything that shares it are gone, in any order. Whatever this package writes there is
    complete when the call that writes it returns, so any stream may read it immediately.

    :meth:`.EmbeddingModel.encode` and the functions of :mod:`~ai_model_optimizations.half` make
    them; the constructor, which leaves the values undefined, is for the package itself.

    Parameters
    ----------
    shape : the lengths of the axes
    dtype : ``"float32"``, ``"float16"`` or ``"bfloat16"``
    device : the number of the CUDA device
    axes : the axes in the order of their strides, largest first; None is row-major
    """

    __slots__ = ("_axes", "_name", "_shape", "memory")

    def __init__(
        self, shape: Sequence[int], dtype: str, device: int, axes: Sequence[int] | None = None
    ) -> None:
        self._shape = tuple(shape)
        self._name = dtype
        self._axes = tuple(range(len(self._shape)) if axes is None else axes)
        #: What holds the elements; for the package itself.
        self.memory = _core.DeviceMemory(device, self.size * _DLPACK_TYPES[dtype][1] // 8)

    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of the axes."""
        return self._shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self._shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self._shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The elements' type as :meth:`numpy` gives them.

        bfloat16 is ``ml_dtypes.bfloat16`` when that package is installed, else uint16, the bits;
        other libraries always get bfloat16.
        """
        if self._name == "bfloat16":
            return bfloat16_dtype() or np.dtype(np.uint16)
        return np.dtype(self._name)

    @property
    def nbytes(self) -> int:
        """Size of the elements in bytes."""
        return self.memory.nbytes

    @property
    def device(self) -> str:
        """Where the memory is: ``"cuda:N"``."""
        return device_name(self.memory.device)

    def __len__(self) -> int:
        if not self._shape:
            raise TypeError("len() of an array without axes")
        return self._shape[0]

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self._shape}, dtype={self._name}, device={self.device!r})"

    def numpy(self) -> NDArray[Any]:
        """Return a copy in host memory, with the same order of axes.

        Raises
        ------
        DeviceError
            If the device fails, or the process was forked after CUDA had been started.
        """
        raw = np.empty(self.nbytes, np.uint8)
        self.memory.read(raw)
        lying = raw.view(self.dtype).reshape([self._shape[i] for i in self._axes])
        axes = [self._axes.index(axis) for axis in range(self.ndim)]
        return np.transpose(lying, axes)

    def __array__(
        self, dtype: np.dtype[Any] | None = None, copy: bool | None = None
    ) -> NDArray[Any]:
        if copy is False:
            raise ValueError(f"an array on {self.device} needs a copy to become a numpy array")
        values = self.numpy()
        return values if dtype is None else values.astype(dtype, copy=False)

    def copy_from(self, values: NDArray[Any]) -> None:
        """Overwrite the elements with those of an array in host memory.

        Nothing on the device may be using them meanwhile.

        Parameters
        ----------
        values : numpy array of the same shape and dtype

        Raises
        ------
        TypeError
            If it has another dtype.
        ValueError
            If it has another shape.
        DeviceError
            As :meth:`numpy`.
        """
        if values.dtype != self.dtype:
            raise TypeError(f"values: expected dtype {self.dtype}, got {values.dtype}")
        if values.shape != self._shape:
            raise ValueError(f"values: expected shape {self._shape}, got {values.shape}")
        lying = np.ascontiguousarray(values.transpose(self._axes))
        self.memory.write(lying.reshape(-1).view(np.uint8))

    # --- DLPack ------------------------------------------------------------------------------

    def __dlpack_device__(self) -> tuple[int, int]:
        return DLPACK_CUDA, self.memory.device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object:
        """Return a DLPack capsule of the memory; see the DLPack specification for Python.

        Parameters
        ----------
        stream : the consumer's stream: None, 1 for the legacy default stream, 2 for the per-thread
            one, a stream's handle, or -1. It is checked but not synchronized with, as all writes
            are already complete
        max_version : what the consumer understands; from (1, 0) on the capsule is of version 1
        dl_device : where the consumer wants it: here, or ``(1, 0)``, the CPU, which takes a copy
        copy : True always copies, False never does; None copies only if it must

        Raises
        ------
        BufferError
            If the array cannot be exported to ``dl_device``, or not without a copy.
        ValueError
            If ``stream`` is not a CUDA stream; 0 is ambiguous.
        """
        if stream is not None and (operator.index(stream) < -1 or stream == 0):
            raise ValueError(
                f"stream: expected None, -1, 1, 2 or a CUDA stream's handle, got {stream}"
            )
        if dl_device is not None:
            wanted = int(dl_device[0]), int(dl_device[1])
            if wanted != self.__dlpack_device__():
                return self._on_the_host(wanted, copy)
        memory = self.memory.copy() if copy else self.memory
        return memory.dlpack(
            *_DLPACK_TYPES[self._name],
            self._shape,
            self._strides(),
            max_version is not None and max_version[0] >= 1,
            bool(copy),
        )

    def _on_the_host(self, wanted: tuple[int, int], copy: bool | None) -> object:
        if wanted != _DLPACK_CPU or copy is False or self._name == "bfloat16":
            raise BufferError(
                f"dl_device: an array of {self._name} on {self.device} cannot become one on DLPack "
                f"device {wanted}{' without a copy' if copy is False else ''}"
            )
        return self.numpy().__dlpack__()

    def _strides(self) -> tuple[int, ...]:
        """Return the elements from one index to the next, by axis."""
        strides = [0] * self.ndim
        step = 1
        for axis in reversed(self._axes):
            strides[axis] = step
            step *= self._shape[axis]
        return tuple(strides)


def is_on_cuda(value: object) -> bool:
    """Whether ``value`` is in CUDA memory, by its DLPack device."""
    if not hasattr(value, "__dlpack_device__") or not hasattr(value, "__dlpack__"):
        return False
    return int(value.__dlpack_device__()[0]) == DLPACK_CUDA


def axes_by_stride(strides: Sequence[int]) -> list[int]:
    """Return the axes from the largest stride to the smallest; equal ones as they come."""
    return sorted(range(len(strides)), key=lambda axis: -abs(strides[axis]))
