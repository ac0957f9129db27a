"""All 2**32 floats, against numpy, on every row of this machine. By hand: it takes minutes.

    python tests/half/exhaustive.py
    python tests/half/exhaustive.py --c-tests "qemu-aarch64-static -L LIBRARIES build/aimo_tests"

The second form adds a row of another machine: it has the C tests compare that row with the scalar
one. Results go to benchmarks/results/half-exhaustive.json.

- f32_to_f16, f32_to_bf16: every float; beside numpy's float16 and ml_dtypes' bfloat16 (or, without
  it, the definition in whole numbers).
- f64_to_f16: every 64th block of floats as doubles, and the doubles right below and above each of
  them, beside numpy.
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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
    """The peer's name and its conversion, to bits."""
    try:
        import ml_dtypes
    except ImportError:

        def definition(x: Array) -> Array:
            b = x.view(np.uint32).astype(np.uint64)
            rounded = np.where(np.isnan(x), b >> 16 | 0x40, (b + 0x7FFF + (b >> 16 & 1)) >> 16)
            return rounded.astype(np.uint16)

        return "definition", definition
    return f"ml_dtypes {ml_dtypes.__version__}", lambda x: x.astype(ml_dtypes.bfloat16).view(
        np.uint16
    )


def floats(first: int) -> Array:
    """CHUNK floats, from the one with these bits on."""
    return (np.uint32(first) + np.arange(CHUNK, dtype=np.uint32)).view(np.float32)


def doubles(first: int) -> Array:
    """The same as doubles, and the doubles below and above each."""
    exact = floats(first).astype(np.float64).view(np.int64)
    return np.concatenate([exact - 1, exact, exact + 1]).view(np.float64)


@dataclass
class Check:
    """A conversion of many blocks, the peer's and ours, bfloat16 as its bits."""

    name: str
    peer: str
    source: Callable[[int], Array]
    expected: Callable[[Array], Array]
    got: Callable[[Array], Array]
    result: type[np.generic]
    step: int = CHUNK

    @property
    def starts(self) -> range:
        return range(0, 1 << 32, self.step)

    def expect(self, first: int) -> Array:
        with np.errstate(all="ignore"):
            return self.expected(self.source(first))

    def count(self, first: int, expected: bytes) -> int:
        with np.errstate(all="ignore"):
            got, wanted = self.got(self.source(first)), np.frombuffer(expected, self.result)
            if self.result is np.uint16:
                return differences(bf16_as_f32(got), bf16_as_f32(wanted))
            return differences(got, wanted)


def checks() -> list[Check]:
    from ai_model_optimizations import half

    numpy, (bf16_peer, bf16) = f"numpy {np.__version__}", to_bf16()

    def ours_bf16(x: Array) -> Array:
        return half.f32_to_bf16(x).view(np.uint16)

    def numpy_f16(x: Array) -> Array:
        return x.astype(np.float16)

    f16 = half.f32_to_f16
    return [
        Check("f32_to_bf16", bf16_peer, floats, bf16, ours_bf16, np.uint16),
        Check("f64_to_f16", numpy, doubles, numpy_f16, f16, np.float16, 64 * CHUNK),
        Check("f32_to_f16", numpy, floats, numpy_f16, f16, np.float16),
    ]


def check_halves() -> dict[str, Any]:
    from ai_model_optimizations import half

    halves = np.arange(65536, dtype=np.uint16)
    as_f16 = halves.view(np.float16)
    up = differences(half.f16_to_f32(as_f16), as_f16.astype(np.float32))
    up_bf16 = differences(half.bf16_to_f32(halves), bf16_as_f32(halves))
    return {
        "f16_to_f32": {"beside": f"numpy {np.__version__}", "values": 65536, "different": up},
        "bf16_to_f32": {"beside": "definition", "values": 65536, "different": up_bf16},
    }


def check_this_row() -> dict[str, Any]:
    """All conversions of the row that AIMO_CPU names; what is expected comes from stdin."""
    found = check_halves()
    for check in checks():
        values = different = 0
        for first in check.starts:
            count = check.source(first).size
            values += count
            expected = sys.stdin.buffer.read(count * np.dtype(check.result).itemsize)
            different += check.count(first, expected)
        found[check.name] = {"beside": check.peer, "values": values, "different": different}
    return found


def check_rows(rows: list[str]) -> dict[str, Any]:
    """A process for each row; the peers, slow over tiny and huge values, convert once for all."""
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, "--this-row"],
            env={**os.environ, "AIMO_CPU": row, "AIMO_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for row in rows
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for check in checks():
            start = time.monotonic()
            for group in range(0, len(check.starts), 256):  # so that few results wait
                for expected in pool.map(check.expect, check.starts[group : group + 256]):
                    for worker in workers:
                        assert worker.stdin is not None
                        worker.stdin.write(expected.tobytes())
            print(f"{check.name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    outputs = [worker.communicate()[0] for worker in workers]
    return {row: json.loads(output) for row, output in zip(rows, outputs, strict=True)}


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
        # The other rows have no kernels of their own for this.
        rows = [r for r in where["rows_available"] if r in ("scalar", "avx2", "avx512", "neon")]
        start = time.monotonic()
        document["rows"].update(check_rows(rows))
        document["seconds"] = round(time.monotonic() - start)
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
