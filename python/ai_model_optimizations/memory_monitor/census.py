"""How many Python objects of each type there are and how large they are, without touching them.

The walk reads type pointers and the size fields of exact builtins. It calls no method and makes no
comparison, so it runs no code of the objects and cannot be stopped by those whose ``__eq__``,
``__class__`` or ``__sizeof__`` raise. It holds the GIL for some milliseconds per million objects.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeGuard

from .. import _core
from .allocations import format_bytes

__all__ = ["Census", "TensorCount", "TypeCount", "take"]

_BLIND_SPOTS = (
    "Counted are the objects that the garbage collector tracks. It does not track str, bytes, int, "
    "float, numpy arrays and other objects that refer to nothing, nor tuples and dicts of only "
    "such. Sizes are shallow: attributes that an instance holds inline, shared dict keys, and "
    "memory that C code keeps for an object are left out."
)
_TENSOR_CLASSES = (("torch", "Tensor"), ("numpy", "ndarray"))


@dataclass(frozen=True, slots=True)
class TypeCount:
    """The tracked objects of one type; ``shallow_bytes`` excludes what they refer to."""

    name: str
    count: int
    shallow_bytes: int


@dataclass(frozen=True, slots=True)
class TensorCount:
    """The tensors of one library.

    ``buffer_bytes`` is the size of their data in host memory, ``device_bytes`` elsewhere, each
    storage counted once; both are None unless ``buffers`` was set. ``count`` then counts the
    objects looked at. numpy arrays are not tracked by the collector, so without ``buffers`` only
    their subclasses are counted.
    """

    name: str
    count: int
    buffer_bytes: int | None = None
    device_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Census:
    """The result of :func:`take`; plain data, it keeps no object alive."""

    timestamp: float
    seconds: float
    by_type: tuple[TypeCount, ...]
    tensors: tuple[TensorCount, ...]
    total_objects: int
    shallow_bytes: int
    blind_spots: str = _BLIND_SPOTS

    def table(self, limit: int = 20) -> str:
        """Return the `limit` types with the most bytes as text."""
        lines = [f"{'shallow':>10}  {'objects':>10}  type"]
        for entry in self.by_type[:limit]:
            size = format_bytes(entry.shallow_bytes)
            lines.append(f"{size:>10}  {entry.count:>10,}  {entry.name}")
        size = format_bytes(self.shallow_bytes)
        lines.append(f"{size:>10}  {self.total_objects:>10,}  in all")
        return "\n".join(lines)

    def to_dict(self, limit: int | None = None) -> dict[str, Any]:
        """Return the census as plain JSON types, with the `limit` largest types."""
        return {
            "timestamp": self.timestamp,
            "total_objects": self.total_objects,
            "shallow_bytes": self.shallow_bytes,
            "blind_spots": self.blind_spots,
            "types": [
                {"name": t.name, "count": t.count, "shallow_bytes": t.shallow_bytes}
                for t in self.by_type[:limit]
            ],
            "tensors": [
                {
                    "name": t.name,
                    "count": t.count,
                    "buffer_bytes": t.buffer_bytes,
                    "device_bytes": t.device_bytes,
                }
                for t in self.tensors
            ],
        }


def _is_class(value: object) -> TypeGuard[type]:
    """``isinstance(value, type)`` that does not read the value's ``__class__``."""
    return issubclass(type(value), type)


def _namespace(name: str) -> dict[str, Any] | None:
    """Return the namespace of an imported module, bypassing any ``__getattr__`` it may have."""
    module = sys.modules.get(name)
    if not issubclass(type(module), ModuleType):
        return None
    slot: Any = vars(ModuleType)["__dict__"]
    namespace = slot.__get__(module)
    return namespace if type(namespace) is dict else None


def _tensor_classes() -> Iterator[tuple[str, type]]:
    """The tensor classes of libraries that are imported already."""
    for module, attribute in _TENSOR_CLASSES:
        found = (_namespace(module) or {}).get(attribute)
        if _is_class(found):
            yield f"{module}.{attribute}", found


def _numpy_buffers(array: type) -> TensorCount:
    """Bytes of exact numpy arrays that own their data; views follow their base."""
    pending, seen, size = list(_core.census_instances((array,))), set(), 0
    while pending:
        a = pending.pop()
        if id(a) in seen:
            continue
        seen.add(id(a))
        if a.flags.owndata:
            size += a.nbytes
        elif type(a.base) is array:
            pending.append(a.base)
    return TensorCount("numpy.ndarray", len(seen), size, 0)


def _torch_buffers(tensor: type, torch: dict[str, Any]) -> TensorCount:
    """Bytes of the storages of exact tensors and parameters.

    Subclasses (fake, quantised, distributed) are left out: any query would run their code. torch's
    modes are off meanwhile. ``_cdata`` identifies a storage without materializing a lazy copy.
    """
    parameter = (_namespace("torch.nn.parameter") or {}).get("Parameter")
    exact = (tensor, parameter) if _is_class(parameter) else (tensor,)
    storages: dict[int, tuple[bool, int]] = {}
    count = 0
    with torch["_C"].DisableTorchFunction():
        for t in _core.census_instances(exact):
            count += 1
            if t.is_meta or t.layout is not torch["strided"]:
                continue
            storage = t.untyped_storage()
            storages[storage._cdata] = (t.device.type == "cpu", storage.nbytes())
    host = sum(size for on_host, size in storages.values() if on_host)
    return TensorCount("torch.Tensor", count, host, sum(s for _, s in storages.values()) - host)


def _tensors(
    classes: list[tuple[str, type]], counts: list[int], buffers: bool
) -> Iterator[TensorCount]:
    for (name, cls), count in zip(classes, counts, strict=True):
        if not buffers:
            yield TensorCount(name, count)
        elif name == "torch.Tensor":
            yield _torch_buffers(cls, _namespace("torch") or {})
        else:
            yield _numpy_buffers(cls)


def take(*, buffers: bool = False) -> Census:
    """Count the process's objects by type.

    Parameters
    ----------
    buffers
        Also add up the data of exact numpy arrays and torch tensors, if these libraries are already
        imported. Only those that a tracked object refers to are found, not those that only a
        running function or C code holds. Never initialises a GPU.

    Returns
    -------
    Census
        ``by_type`` has the types with the most shallow bytes first; ``blind_spots`` says what a
        census cannot see.

    Raises
    ------
    UnsupportedError
        On a CPython whose heap layout is not known (it is known for 3.10 to 3.13 with the GIL).
    """
    classes = list(_tensor_classes())
    start = time.perf_counter()
    entries = _core.census_types(tuple(cls for _, cls in classes))
    seconds = time.perf_counter() - start
    counts = [0] * len(classes)
    by_name: dict[str, TypeCount] = {}
    for name, count, size, index in entries:
        known = by_name.get(name, TypeCount(name, 0, 0))
        by_name[name] = TypeCount(name, known.count + count, known.shallow_bytes + size)
        if index >= 0:
            counts[index] += count
    return Census(
        timestamp=time.time(),
        seconds=seconds,
        by_type=tuple(sorted(by_name.values(), key=lambda t: (-t.shallow_bytes, t.name))),
        tensors=tuple(_tensors(classes, counts, buffers)),
        total_objects=sum(t.count for t in by_name.values()),
        shallow_bytes=sum(t.shallow_bytes for t in by_name.values()),
    )
