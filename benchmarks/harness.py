"""Shared by all benchmarks: the machine, equal threads, interleaved timing, the result file."""

from __future__ import annotations

import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAUSE_SECONDS = 0.02  # see interleave

#: Each library has its own variable for the size of its thread pool.
_THREAD_VARIABLES = (
    "AIMO_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS", "CT2_INTRA_THREADS",
)  # fmt: skip


def set_threads(count: int) -> None:
    """Give every library the same number of threads. Call before importing any of them."""
    for variable in _THREAD_VARIABLES:
        os.environ[variable] = str(count)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["HF_HUB_OFFLINE"] = "1"


def machine() -> dict[str, Any]:
    """Describe processor, kernel row, threads and versions."""
    import numpy

    from ai_model_optimizations import __version__, _core

    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "row": _core.cpu_info()["row"],
        "rows_available": _core.cpu_info()["available"],
        "threads": _core.thread_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "ai_model_optimizations": __version__,
    }


def _processor() -> str:
    try:
        text = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return platform.processor() or "unknown"
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    words = [fields.get(name, "").strip() for name in ("Model name", "CPU family", "Model")]
    return f"{words[0]} (family {words[1]}, model {words[2]})"


def commit() -> str:
    """The commit being measured, with -dirty when files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and extremes of some timings, in seconds."""
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}


def interleave(
    engines: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, dict[str, float]]:
    """Time the engines in turn, so that a disturbance of the machine affects all of them.

    Each callable does the work once and returns the seconds it took. The first round warms up.
    A pause separates them, because idle pool threads spin on a processor for a while.
    """
    timings: dict[str, list[float]] = {name: [] for name in engines}
    for round_number in range(rounds + 1):
        for name, run in engines.items():
            time.sleep(PAUSE_SECONDS)
            seconds = run()
            if round_number > 0:
                timings[name].append(seconds)
    return {name: summary(values) for name, values in timings.items()}


def stopwatch(work: Callable[[], object], calls: int = 1) -> Callable[[], float]:
    """Return a callable that does the work ``calls`` times and returns seconds per call."""

    def run() -> float:
        start = time.perf_counter()
        for _ in range(calls):
            work()
        return (time.perf_counter() - start) / calls

    return run


def missing(name: str, reason: object) -> None:
    """Report that a peer is left out."""
    print(f"  left out: {name}: {reason}", file=sys.stderr)


def save(bench: str, results: Mapping[str, Any]) -> Path:
    """Write results/<bench>-<row>.json with machine, commit and command."""
    where = machine()
    path = RESULTS / f"{bench}-{where['row']}.json"
    script = Path(sys.argv[0]).resolve()
    command = ["python", str(script.relative_to(ROOT)), *sys.argv[1:]]
    document = {
        "bench": bench,
        "machine": where,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "command": shlex.join(command),
        **results,
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"written: {path.relative_to(ROOT)}")
    return path
