"""Where the memory is: Python objects, arrays, tensors, this package, the allocator, the rest.

The operating system knows how many pages are resident; each owner knows how much it allocated. The
difference is memory that no owner claims. Nothing is imported for this: torch is queried only if
the process has loaded it, a GPU only if the process has initialised it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from .. import _core
from . import census, process
from .snapshot import megabytes

_NOTHING_LARGE = sys.maxsize


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """torch's caching allocator on one device, in bytes."""

    device: int
    allocated: int
    reserved: int


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Bytes by owner; None where a number was not requested or cannot be known here.

    Owners are counted by the bytes they allocated. Pages that were never touched are not resident,
    so the sum over owners may exceed ``anonymous``; ``unattributed`` is then 0.
    """

    rss: int
    anonymous: int
    file_mapped: int
    shared: int
    swapped: int
    peak: int
    pss: int | None
    objects: int | None
    python_objects: int | None
    numpy: int | None
    torch_cpu: int | None
    native_core: int
    allocator: str
    allocator_retained: int | None
    gpus: tuple[GpuMemory, ...] = field(default=())

    @property
    def unattributed(self) -> int | None:
        """Anonymous memory that no owner claims; None unless the heap was walked."""
        if self.python_objects is None:
            return None
        claimed = (
            self.python_objects,
            self.numpy,
            self.torch_cpu,
            self.native_core,
            self.allocator_retained,
        )
        return max(0, self.anonymous + self.swapped - sum(part or 0 for part in claimed))

    def to_dict(self) -> dict[str, Any]:
        """The split as plain JSON, in megabytes."""

        def mb(count: int | None) -> float | None:
            return None if count is None else megabytes(count)

        return {
            "rss_mb": mb(self.rss),
            "anonymous_mb": mb(self.anonymous),
            "file_mapped_mb": mb(self.file_mapped),
            "shared_mb": mb(self.shared),
            "swapped_mb": mb(self.swapped),
            "peak_mb": mb(self.peak),
            "pss_mb": mb(self.pss),
            "objects": self.objects,
            "python_objects_mb": mb(self.python_objects),
            "numpy_mb": mb(self.numpy),
            "torch_cpu_mb": mb(self.torch_cpu),
            "native_core_mb": mb(self.native_core),
            "allocator": self.allocator,
            "allocator_retained_mb": mb(self.allocator_retained),
            "unattributed_mb": mb(self.unattributed),
            "gpus": [
                {
                    "device": gpu.device,
                    "allocated_mb": mb(gpu.allocated),
                    "reserved_mb": mb(gpu.reserved),
                }
                for gpu in self.gpus
            ],
        }


def _loaded(name: str, *path: str) -> Any:
    """Return an attribute of a module that the process has loaded, or None; imports nothing.

    It is read from the module's own dict: a lazy module's ``__getattr__`` would import.
    """
    found: Any = sys.modules.get(name)
    for attribute in path:
        if type(found) is not ModuleType:
            return None
        found = found.__dict__.get(attribute)
    return found


def gpu_memory() -> tuple[GpuMemory, ...]:
    """Return what torch holds on each device; empty unless this process has initialised CUDA."""
    cuda = _loaded("torch", "cuda")
    if type(cuda) is not ModuleType or not cuda.is_initialized():
        return ()
    return tuple(
        GpuMemory(device, int(cuda.memory_allocated(device)), int(cuda.memory_reserved(device)))
        for device in range(cuda.device_count())
    )


def take(*, objects: bool = True, pss: bool = False) -> Breakdown:
    """Split the memory of this process by owner.

    Parameters
    ----------
    objects : walk the heap for Python objects, arrays and tensors; holds the GIL, about 0.15 s for
        a million objects
    pss : also read the proportional set size, for which the kernel walks the page tables
    """
    count = python_bytes = array_bytes = tensor_bytes = None
    if objects:
        count, python_bytes, _, array_bytes, *_ = _core.heap_summary((), _NOTHING_LARGE)
        tensors = {kind.name: kind for kind in census.take(buffers=True).tensors}
        tensor_bytes = tensors["torch.Tensor"].buffer_bytes if "torch.Tensor" in tensors else 0
    memory, allocator = process.memory(), process.allocator()
    return Breakdown(
        rss=memory.rss,
        anonymous=memory.anonymous,
        file_mapped=memory.file_mapped,
        shared=memory.shared,
        swapped=memory.swapped,
        peak=memory.peak,
        pss=process.proportional_bytes() if pss else None,
        objects=count,
        python_objects=python_bytes,
        numpy=array_bytes,
        torch_cpu=tensor_bytes,
        native_core=_core.memory_info()["live_bytes"],
        allocator=allocator["name"],
        allocator_retained=allocator["retained"] if allocator["known"] else None,
        gpus=gpu_memory(),
    )
