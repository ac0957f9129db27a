"""Storage types of weights."""

from __future__ import annotations

from typing import Literal

from .. import _core
from ..devices import CPU

DType = Literal["f32", "f16", "bf16", "int8"]
DTYPES: tuple[DType, ...] = ("f32", "f16", "bf16", "int8")

# Their kernels multiply bf16 at several times the rate of f32.
_FAST_BF16_ROWS = ("avx512_bf16", "amx")


def resolve_dtype(dtype: str, device: int = CPU) -> DType:
    """Return the storage type that ``dtype`` stands for on this machine.

    ``"auto"`` is the fastest 16-bit type: bf16 where the processor has instructions for it, else
    f16. CUDA devices multiply both at the same rate, and f16 is more precise.
    """
    if dtype == "auto" and device != CPU:
        return "f16"
    if dtype == "auto":
        return "bf16" if _core.cpu_info()["row"] in _FAST_BF16_ROWS else "f16"
    for known in DTYPES:
        if dtype == known:
            return known
    raise ValueError(f"dtype: expected 'auto' or one of {DTYPES}, got {dtype!r}")
