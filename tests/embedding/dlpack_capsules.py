"""What is in a DLPack capsule, read with ctypes: the tests' own consumer."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_int32, c_int64, c_uint8, c_uint16, c_uint64, c_void_p
from typing import Any

_python = ctypes.pythonapi
_python.PyCapsule_GetName.restype = ctypes.c_char_p
_python.PyCapsule_GetName.argtypes = [ctypes.py_object]
_python.PyCapsule_GetPointer.restype = c_void_p
_python.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
_python.PyCapsule_SetName.argtypes = [ctypes.py_object, ctypes.c_char_p]


class _Tensor(Structure):
    _fields_ = (
        ("data", c_void_p),
        ("device_type", c_int32),
        ("device_id", c_int32),
        ("ndim", c_int32),
        ("code", c_uint8),
        ("bits", c_uint8),
        ("lanes", c_uint16),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    )


#: Called through ctypes, so without the GIL.
_Deleter = ctypes.CFUNCTYPE(None, c_void_p)


class _Managed(Structure):
    _fields_ = (("tensor", _Tensor), ("context", c_void_p), ("deleter", _Deleter))


class _ManagedVersioned(Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", c_void_p),
        ("deleter", _Deleter),
        ("flags", c_uint64),
        ("tensor", _Tensor),
    )


def _managed_of(capsule: Any) -> Any:
    name = _python.PyCapsule_GetName(capsule)
    kind: Any = _ManagedVersioned if name == b"dltensor_versioned" else _Managed
    return kind.from_address(_python.PyCapsule_GetPointer(capsule, name))


class OnTheHost:
    """An array of the shim's, whose memory is the host's, as one that says so."""

    def __init__(self, array: Any, versioned: bool) -> None:
        self._array, self._versioned = array, versioned

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0

    def __dlpack__(self, **options: object) -> object:
        capsule = self._array.__dlpack__(max_version=(1, 0) if self._versioned else None)
        _managed_of(capsule).tensor.device_type = 1
        return capsule


#: What a consumer renames a capsule to; a capsule keeps a pointer to its name.
_USED = {b"dltensor": b"used_dltensor", b"dltensor_versioned": b"used_dltensor_versioned"}


class Taken:
    """A capsule's tensor, taken over as a consumer does; :meth:`delete` gives it back."""

    def __init__(self, capsule: Any) -> None:
        name = _python.PyCapsule_GetName(capsule)
        self.versioned = name == b"dltensor_versioned"
        self._at = _python.PyCapsule_GetPointer(capsule, name)
        self._managed = _managed_of(capsule)
        assert _python.PyCapsule_SetName(capsule, _USED[name]) == 0
        tensor = self._managed.tensor
        self.address: int = tensor.data + tensor.byte_offset
        self.device = (tensor.device_type, tensor.device_id)
        self.dtype = (tensor.code, tensor.bits, tensor.lanes)
        self.shape = tuple(tensor.shape[: tensor.ndim])
        self.strides = tuple(tensor.strides[: tensor.ndim])
        self.version = (self._managed.major, self._managed.minor) if self.versioned else None
        self.flags = self._managed.flags if self.versioned else 0

    def delete(self) -> None:
        self._managed.deleter(self._at)


class _Controls(Structure):
    """As cuda_shim_controls in tests/cuda_shim/cuda_shim.h."""

    _fields_ = (
        ("set_machine", c_void_p),
        ("fail_allocations_after", ctypes.CFUNCTYPE(None, ctypes.c_long)),
        ("fail_calls_after", ctypes.CFUNCTYPE(None, ctypes.c_long)),
        ("held", ctypes.CFUNCTYPE(ctypes.c_size_t)),
        ("peak", ctypes.CFUNCTYPE(ctypes.c_size_t)),
    )


def shim_controls(library: str) -> _Controls:
    """Return the shim's counters and faults."""
    get = ctypes.CDLL(library).cuda_shim_controls_get
    get.restype = POINTER(_Controls)
    controls: _Controls = get().contents
    return controls
