"""Where models and caches compute: the CPU, or a CUDA device, loaded on demand."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from . import _core
from .errors import AimoError, UnsupportedError

#: The number that the core gives the processor; CUDA devices have numbers from 0.
CPU = -1

#: The CUDA backend; it is there when the package was built where nvcc was.
LIBRARY = Path(_core.__file__).with_name("libaimo_cuda.so")

#: cuBLASLt by name: what the process has loaded already (torch brings it), else the system's.
_CUBLAS_NAMES = ("libcublasLt.so.13", "libcublasLt.so.12")
#: cuBLASLt in packages: nvidia-cublas, and nvidia-cublas-cu12 under its older layout.
_CUBLAS_IN_PACKAGES = ("cu13/lib/libcublasLt.so.13", "cublas/lib/libcublasLt.so.12")
_TOOLKITS = Path("/usr/local")


def parse_device(device: str) -> int:
    """Return the number of the named device, loading CUDA if it is one: ``CPU`` or 0, 1, ...

    Parameters
    ----------
    device : ``"cpu"``; ``"cuda"``, which is ``"cuda:0"``; ``"cuda:N"``; or ``"auto"``, the first
        CUDA device, or the CPU when there is none that can be used

    Raises
    ------
    TypeError
        If ``device`` is not a string.
    ValueError
        If it is not one of these, or there is no device of that number.
    UnsupportedError
        If CUDA cannot be used here; the message says what is missing.
    DeviceError
        If the process was forked after CUDA had been started.
    """
    if not isinstance(device, str):
        raise TypeError(f"device: expected str, got {type(device).__name__}")
    if device == "cpu":
        return CPU
    if device == "auto":
        return CPU if cuda_problem() is not None else 0
    match = re.fullmatch(r"cuda(?::(\d{1,4}))?", device)
    if match is None:
        raise ValueError(f"device: expected 'cpu', 'auto', 'cuda' or 'cuda:N', got {device!r}")
    load_cuda()
    index = int(match[1] or 0)
    _core.cuda_device(index)
    return index


def device_name(index: int) -> str:
    """Return ``"cpu"`` or ``"cuda:N"``."""
    return "cpu" if index == CPU else f"cuda:{index}"


def load_cuda() -> None:
    """Load the CUDA backend, its driver and its libraries into the process.

    Raises
    ------
    UnsupportedError
        If something is missing; the message says what.
    DeviceError
        If the process was forked after CUDA had been started.
    """
    if not LIBRARY.exists():
        raise UnsupportedError("CUDA: this build of the package has none (nvcc was not found)")
    _core.cuda_load(str(LIBRARY), cublas_candidates())


def cuda_problem() -> str | None:
    """Return why CUDA cannot be used in this process; None when it can."""
    try:
        load_cuda()
        _core.cuda_versions()
    except AimoError as error:
        return str(error)
    return None


def cublas_candidates() -> list[str]:
    """Return the names and files under which cuBLASLt may be found, in the order to try them."""
    files = list(_CUBLAS_NAMES)
    packages = importlib.util.find_spec("nvidia")
    for folder in packages.submodule_search_locations or () if packages is not None else ():
        files += [str(Path(folder) / name) for name in _CUBLAS_IN_PACKAGES]
    for toolkit in sorted(_TOOLKITS.glob("cuda*"), reverse=True):
        files += [str(toolkit / "lib64" / name) for name in _CUBLAS_NAMES]
    return [file for file in files if "/" not in file or Path(file).exists()]


def describe_cuda() -> list[str]:
    """Return lines for display: versions and devices, or what is missing."""
    problem = cuda_problem()
    if problem is not None:
        return [problem]
    versions = _core.cuda_versions()
    lines = [
        f"driver for {_dotted(versions['driver'])}, runtime {_dotted(versions['runtime'])}, "
        f"cuBLASLt {versions['cublas']}"
    ]
    for index in range(versions["devices"]):
        device = _core.cuda_device(index)
        capability = ".".join(map(str, device["capability"]))
        gigabytes = device["memory_bytes"] / 1e9
        lines.append(f"cuda:{index} {device['name']}, {gigabytes:.0f} GB, capability {capability}")
    return lines


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"
