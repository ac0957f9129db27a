"""Conversion between f32 (or f64) and the 16-bit types beside numpy, ml_dtypes and torch, in GB/s.

    python benchmarks/bench_half.py [--threads N ...] [--rounds N] [--elements N ...]

16,384 elements fit in the caches, 67,108,864 do not. Each engine is timed allocating its result
and, marked "out", writing into a given array. GB/s counts bytes read plus bytes written. Results
are first compared with those of numpy or ml_dtypes. numpy and ml_dtypes use one thread.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import harness

Work = Callable[[], Any]
Engines = dict[str, Work]


def as_torch(array: Any) -> Any:
    """The same memory as a tensor; bfloat16 travels as int16, which torch can view."""
    import numpy as np
    import torch

    if array.dtype.name in ("bfloat16", "uint16"):
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def numpy_engine(x: Any, dtype: Any) -> Engines:
    """numpy, or for bfloat16 what ml_dtypes gives to numpy."""
    import numpy as np

    name = "ml_dtypes" if "bfloat16" in (x.dtype.name, np.dtype(dtype).name) else "numpy"
    out = np.empty(x.shape, dtype)
    return {
        name: lambda: x.astype(dtype),
        f"{name}, out": lambda: np.copyto(out, x, casting="unsafe"),
    }


def torch_engine(x: Any, expected: Any) -> Engines:
    """torch, unless its result differs, as it rounds doubles twice."""
    import numpy as np
    import torch

    wide, wanted = as_torch(x), as_torch(expected)
    different = int(torch.count_nonzero(wide.to(wanted.dtype) != wanted))
    if different:
        kind = f"{np.dtype(x.dtype).name} to {expected.dtype.name}"
        harness.missing(f"torch, {kind}", f"{different} of {x.size} results are wrong")
        return {}
    out = torch.empty_like(wanted)
    return {
        "torch": lambda: wide.to(wanted.dtype),
        "torch, out": lambda: out.copy_(wide),
    }


def engines(convert: Callable[..., Any], x: Any, expected: Any) -> Engines:
    """The engines whose conversion of x equals ``expected``; ours has been checked."""
    import numpy as np

    got = convert(x)
    bits = f"u{expected.itemsize}"
    np.testing.assert_array_equal(got.view(bits), expected.view(bits))
    out = np.empty_like(expected)
    found: Engines = {"ours": lambda: convert(x), "ours, out": lambda: convert(x, out)}
    if expected.dtype != np.uint16 and x.dtype != np.uint16:
        found |= numpy_engine(x, expected.dtype)
    try:
        found |= torch_engine(x, expected)
    except ImportError as error:
        harness.missing("torch", error)
    return found


def conversions(elements: int) -> dict[str, tuple[int, Engines]]:
    """For each direction, the bytes moved and the engines."""
    import numpy as np

    from ai_model_optimizations import half

    f32 = np.random.default_rng(0).standard_normal(elements, dtype=np.float32)
    f16, bf16 = f32.astype(np.float16), half.f32_to_bf16(f32)
    if bf16.dtype == np.uint16:
        harness.missing("ml_dtypes", "not installed; bfloat16 is checked by the tests alone")
    else:
        bf16 = f32.astype(bf16.dtype)
    widened = (bf16.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    # Doubles near midpoints between two halves, where double rounding shows.
    f64 = np.nextafter((f16.astype(np.float64) * (1 + 2.0**-11)), np.inf)
    return {
        "f32 to f16": (6, engines(half.f32_to_f16, f32, f16)),
        "f16 to f32": (6, engines(half.f16_to_f32, f16, f16.astype(np.float32))),
        "f32 to bf16": (6, engines(half.f32_to_bf16, f32, bf16)),
        "bf16 to f32": (6, engines(half.bf16_to_f32, bf16, widened)),
        "f64 to f16": (10, engines(half.f32_to_f16, f64, f64.astype(np.float16))),
    }


def set_threads(count: int) -> None:
    """Set the threads of our library and of torch; the others use one."""
    from ai_model_optimizations import _core

    _core.set_thread_count(count)
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(count)


def measure(elements: int, bytes_each: int, found: Engines, rounds: int) -> dict[str, Any]:
    """GB/s of each engine, and how many times the rate of each peer ours is."""
    calls = max(1, 4_000_000 // elements)
    timings = harness.interleave(
        {name: harness.stopwatch(work, calls) for name, work in found.items()}, rounds
    )
    gigabytes = elements * bytes_each / 1e9
    rates: dict[str, Any] = {
        name: {
            "median": round(gigabytes / t["median"], 2),
            "min": round(gigabytes / t["max"], 2),
            "max": round(gigabytes / t["min"], 2),
        }
        for name, t in timings.items()
    }
    rates["times"] = {
        name: round(rates["ours, out" if "out" in name else "ours"]["median"] / r["median"], 2)
        for name, r in rates.items()
        if not name.startswith("ours")
    }
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description="Half precision conversion, GB/s")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--elements", type=int, nargs="+", default=[16_384, 67_108_864])
    arguments = parser.parse_args()
    harness.set_threads(max(arguments.threads))

    rates: dict[str, dict[str, dict[str, Any]]] = {}
    for elements in arguments.elements:
        for direction, (bytes_each, found) in conversions(elements).items():
            for threads in arguments.threads:
                set_threads(threads)
                result = measure(elements, bytes_each, found, arguments.rounds)
                rates.setdefault(str(elements), {}).setdefault(direction, {})[str(threads)] = result
                line = ", ".join(
                    f"{name} {r['median']:.1f}" for name, r in result.items() if name != "times"
                )
                print(f"{elements:>10} {direction}, {threads} threads: {line} GB/s", flush=True)
    harness.save("half", {"unit": "GB/s, read plus written; by number of threads", "rates": rates})


if __name__ == "__main__":
    main()
