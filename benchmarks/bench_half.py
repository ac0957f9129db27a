"""Conversion between f32 and the 16-bit types beside numpy, ml_dtypes and torch, in GB/s.

    python benchmarks/bench_half.py [--threads N] [--rounds N] [--elements N ...]

GB/s counts bytes read plus bytes written. Results are compared with numpy's first.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import harness


def conversions(elements: int, threads: int) -> dict[str, dict[str, Callable[[], Any]]]:
    """For each direction, each engine's work on the same array."""
    import numpy as np

    from ai_model_optimizations import _core

    random = np.random.default_rng(0)
    f32 = random.standard_normal(elements, dtype=np.float32)
    f16 = f32.astype(np.float16)
    bf16 = _core.f32_to_bf16(f32)
    np.testing.assert_array_equal(_core.f32_to_f16(f32).view(np.uint16), f16.view(np.uint16))
    np.testing.assert_array_equal(_core.f16_to_f32(f16), f16.astype(np.float32))

    work: dict[str, dict[str, Callable[[], Any]]] = {
        "f32 to f16": {
            "ours": lambda: _core.f32_to_f16(f32),
            "numpy": lambda: f32.astype(np.float16),
        },
        "f16 to f32": {
            "ours": lambda: _core.f16_to_f32(f16),
            "numpy": lambda: f16.astype(np.float32),
        },
        "f32 to bf16": {"ours": lambda: _core.f32_to_bf16(f32)},
    }
    try:
        import ml_dtypes
    except ImportError as error:
        harness.missing("ml_dtypes", error)
    else:
        np.testing.assert_array_equal(bf16, f32.astype(ml_dtypes.bfloat16).view(np.uint16))
        work["f32 to bf16"]["ml_dtypes"] = lambda: f32.astype(ml_dtypes.bfloat16)
    try:
        import torch
    except ImportError as error:
        harness.missing("torch", error)
    else:
        torch.set_num_threads(threads)
        wide, half = torch.from_numpy(f32), torch.from_numpy(f16)
        work["f32 to f16"]["torch"] = lambda: wide.to(torch.float16)
        work["f16 to f32"]["torch"] = lambda: half.to(torch.float32)
        work["f32 to bf16"]["torch"] = lambda: wide.to(torch.bfloat16)
    return work


def main() -> None:
    parser = argparse.ArgumentParser(description="Half precision conversion, GB/s")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--elements", type=int, nargs="+", default=[16_384, 67_108_864])
    arguments = parser.parse_args()
    harness.set_threads(arguments.threads)

    rates: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for elements in arguments.elements:
        calls = max(1, 10_000_000 // elements)
        for direction, engines in conversions(elements, arguments.threads).items():
            timings = harness.interleave(
                {name: harness.stopwatch(work, calls) for name, work in engines.items()},
                arguments.rounds,
            )
            gigabytes = elements * 6 / 1e9
            rates.setdefault(str(elements), {})[direction] = {
                name: {
                    "median": gigabytes / t["median"],
                    "min": gigabytes / t["max"],
                    "max": gigabytes / t["min"],
                }
                for name, t in timings.items()
            }
            line = ", ".join(
                f"{name} {gigabytes / t['median']:.1f}" for name, t in timings.items()
            )
            print(f"{elements:>10} {direction}: {line} GB/s", flush=True)
    harness.save("half", {"unit": "GB/s, read plus written", "rates": rates})


if __name__ == "__main__":
    main()
