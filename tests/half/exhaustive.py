"""All 2**32 floats, against numpy, on every row of this machine. By hand: minutes per row.

    python tests/half/exhaustive.py
    python tests/half/exhaustive.py --c-tests "qemu-aarch64-static -L LIBRARIES build/aimo_tests"

The second form adds a row of another machine: it has the C tests compare that row with the scalar
one. Results go to benchmarks/results/half-exhaustive.json.

- f32_to_f16, f32_to_bf16: every float; beside numpy's float16 and ml_dtypes' bfloat16 (or, without
  it, the definition in whole numbers).
- f64_to_f16: every float as a double, and the doubles right below and above it, beside numpy.
- f16_to_f32, bf16_to_f32: every half.

Bits are compared; where both results are a NaN, the sign.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / "half-exhaustive.json"
CHUNK = 1 << 18  # fits the caches
Array = NDArray[Any]


def differences(got: Array, expected: Array) -> int:
    """How many elements differ, a NaN being any NaN of the same sign."""
    unsigned = f"u{got.itemsize}"
    where = np.flatnonzero(got.view(unsigned) != expected.view(unsigned))
    g, e = got[where], expected[where]
    same_nan = (g != g) & (e != e) & (np.signbit(g) == np.signbit(e))
    return int(where.size - np.count_nonzero(same_nan))


def bf16_as_f32(bits: Array) -> Array:
    """What bfloat16 is: the upper half of a float."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bf16() -> tuple[str, Callable[[Array], Array]]:
    """The peer's name and its conversion, widened again to be compared."""
    try:
        import ml_dtypes
    except ImportError:

        def definition(x: Array) -> Array:
            b = x.view(np.uint32).astype(np.uint64)
            rounded = np.where(np.isnan(x), b >> 16 | 0x40, (b + 0x7FFF + (b >> 16 & 1)) >> 16)
            return bf16_as_f32(rounded)

        return "definition", definition
    return f"ml_dtypes {ml_dtypes.__version__}", lambda x: bf16_as_f32(
        x.astype(ml_dtypes.bfloat16).view(np.uint16)
    )


def check_floats(name: str, peer: str, check: Callable[[Array], int], per_float: int = 1) -> Any:
    """Run ``check`` over all floats, in chunks."""
    start, different = time.monotonic(), 0
    for first in range(0, 1 << 32, CHUNK):
        bits = np.uint32(first) + np.arange(CHUNK, dtype=np.uint32)
        with np.errstate(all="ignore"):
            different += check(bits.view(np.float32))
    seconds = round(time.monotonic() - start)
    print(f"  {name}: {different} different, {seconds} s", file=sys.stderr, flush=True)
    return {"beside": peer, "values": per_float << 32, "different": different, "seconds": seconds}


def check_doubles(x: Array) -> int:
    from ai_model_optimizations import half

    double = x.astype(np.float64)
    neighbours = [(double.view(np.int64) + step).view(np.float64) for step in (-1, 0, 1)]
    return sum(differences(half.f32_to_f16(y), y.astype(np.float16)) for y in neighbours)


def check_this_row() -> dict[str, Any]:
    """All conversions of the row that AIMO_CPU names."""
    from ai_model_optimizations import half

    numpy, (bf16_peer, bf16) = f"numpy {np.__version__}", to_bf16()
    halves = np.arange(65536, dtype=np.uint16)
    as_f16 = halves.view(np.float16)
    up = differences(half.f16_to_f32(as_f16), as_f16.astype(np.float32))
    up_bf16 = differences(half.bf16_to_f32(halves), bf16_as_f32(halves))
    return {
        "f16_to_f32": {"beside": numpy, "values": 65536, "different": up},
        "bf16_to_f32": {"beside": "definition", "values": 65536, "different": up_bf16},
        "f32_to_f16": check_floats(
            "f32_to_f16", numpy, lambda x: differences(half.f32_to_f16(x), x.astype(np.float16))
        ),
        "f32_to_bf16": check_floats(
            "f32_to_bf16",
            bf16_peer,
            lambda x: differences(bf16_as_f32(half.f32_to_bf16(x).view(np.uint16)), bf16(x)),
        ),
        "f64_to_f16": check_floats("f64_to_f16", numpy, check_doubles, per_float=3),
    }


def check_c_tests(command: str) -> tuple[str, dict[str, Any]]:
    """Another machine's row beside the scalar one, by the C tests; fails when they do."""
    start = time.monotonic()
    words = [*shlex.split(command), "--filter", "half_"]
    environment = {**os.environ, "AIMO_TEST_ALL_FLOATS": "1"}
    run = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    last = run.stdout.strip().splitlines()[-1]  # "row neon, 2 threads: 9 passed, 0 failed"
    row = last.split(",")[0].removeprefix("row ")
    seconds = round(time.monotonic() - start)
    print(f"{last} in {seconds} s", file=sys.stderr)
    values = {name: {"beside": "scalar row", "values": 1 << 32, "different": 0} for name in
              ("f32_to_f16", "f32_to_bf16")}  # fmt: skip
    return row, {"command": shlex.join(words), "seconds": seconds, **values}


def features() -> str:
    """The processor's flags that the rows use."""
    used = ("f16c", "avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "asimd")
    try:
        present = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return "unknown"
    return " ".join(flag for flag in used if flag in present)


def main() -> None:
    parser = argparse.ArgumentParser(description="All 2**32 floats on every row")
    parser.add_argument("--c-tests", help="command that runs aimo_tests of another machine")
    parser.add_argument("--this-row", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.this_row:
        print(json.dumps(check_this_row()))
        return
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import harness

    document = json.loads(RESULT.read_text()) if RESULT.exists() else {"rows": {}}
    if arguments.c_tests:
        row, result = check_c_tests(arguments.c_tests)
        document["rows"][row] = result
    else:
        where = harness.machine()
        document["machine"] = {**where, "features": features()}
        document["commit"], document["date"] = harness.commit(), time.strftime("%Y-%m-%d")
        document["command"] = "python tests/half/exhaustive.py"
        for row in where["rows_available"]:
            if row not in ("scalar", "avx2", "avx512", "neon"):
                continue  # half conversion has no kernels of its own there
            print(f"row {row}", file=sys.stderr, flush=True)
            output = subprocess.run(
                [sys.executable, __file__, "--this-row"],
                env={**os.environ, "AIMO_CPU": row},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            ).stdout
            document["rows"][row] = json.loads(output)
    RESULT.write_text(json.dumps(document, indent=1) + "\n")
    wrong = sum(
        check["different"]
        for row in document["rows"].values()
        for check in row.values()
        if isinstance(check, dict)
    )
    sys.exit(f"{wrong} values differ" if wrong else 0)


if __name__ == "__main__":
    main()
