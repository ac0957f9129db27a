"""The cost of the memory monitor: a tick, a handler's read, a scan, and the work it slows down.

    python benchmarks/bench_monitor.py [--rounds 15] [--output benchmarks/results/monitor.json]

The readings are checked before anything is timed. Each figure is compared with a peer in the same
rounds: a tick with psutil's calls for the same numbers, monitored work with plain work. Ratios are
taken per round in CPU time of the whole process, the monitor's thread included.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from ai_model_optimizations import _core
from ai_model_optimizations.memory_monitor import MemoryLeakDetector, memory_monitor

TICKS = 200

held: dict[str, Any] = {}


def check() -> None:
    """The readings agree with the system's own."""
    held["block"] = bytearray(b"x" * (64 << 20))
    snapshot = memory_monitor._read()
    assert abs(snapshot.process.rss - psutil.Process().memory_info().rss) < 4 << 20
    assert any(e["size_mb"] == 64.0 for e in MemoryLeakDetector().analyze_large_objects(60))
    held.clear()
    assert memory_monitor.errors == 0


def psutil_tick() -> None:
    """The same figures from psutil: memory, CPU, threads, descriptors, connections."""
    process = psutil.Process()
    with process.oneshot():
        process.memory_info(), process.cpu_times(), process.num_threads(), process.num_fds()
    process.net_connections()
    gc.get_stats()


def microseconds(function: Callable[[], Any], count: int = TICKS) -> dict[str, float]:
    times = []
    for _ in range(count):
        start = time.perf_counter()
        function()
        times.append(1e6 * (time.perf_counter() - start))
    times.sort()
    return {"median_us": round(median(times), 1), "p95_us": round(times[int(0.95 * count)], 1)}


def json_load() -> None:
    """Encode and decode 20,000 records."""
    rows = [{"id": i, "name": f"name {i}", "tags": ["a", "b"]} for i in range(20_000)]
    assert len(json.loads(json.dumps(rows))) == 20_000


def regex_load() -> None:
    """Search 2 MB of text."""
    text = " ".join(f"user{i}@example.com wrote {i % 97} lines" for i in range(50_000))
    assert len(re.findall(r"\b\w+@\w+\.com\b", text)) == 50_000


@functools.cache
def texts() -> list[str]:
    return [
        f"Text number {i}: how much memory does a service need at {i} users?" for i in range(256)
    ]


@functools.cache
def model() -> Any:
    """The default model when one is on this machine, else None."""
    from ai_model_optimizations.embedding import EmbeddingModel

    try:
        return EmbeddingModel.load()
    except Exception as error:
        print(f"embedding is left out: {type(error).__name__}: {error}", file=sys.stderr)
        return None


def embedding_load() -> None:
    """Embed 256 texts."""
    assert model().encode(texts()).shape[0] == 256


def cpu_seconds(function: Callable[[], None]) -> float:
    gc.collect()
    start = time.process_time()
    function()
    return time.process_time() - start


def overhead(work: Callable[[], None], rounds: int) -> dict[str, float]:
    """CPU time with a monitor that reads every 0.1 s (600 times the default), over without."""
    ratios = []
    work()
    for i in range(rounds):
        seconds = {}
        for monitored in (i % 2 == 0, i % 2 != 0):
            if monitored:
                memory_monitor.start_monitoring()
            seconds[monitored] = cpu_seconds(work)
            memory_monitor.stop_monitoring()
        ratios.append(seconds[True] / seconds[False])
    ratios.sort()
    return {
        "median_ratio": round(median(ratios), 4),
        "low": round(ratios[len(ratios) // 4], 4),
        "high": round(ratios[-1 - len(ratios) // 4], 4),
    }


def measure(rounds: int) -> dict[str, Any]:
    detector = MemoryLeakDetector()
    held["heap"] = [[i] for i in range(400_000)]
    results: dict[str, Any] = {
        "tick": microseconds(memory_monitor._tick),
        "psutil, same figures": microseconds(psutil_tick),
        "get_stats": microseconds(memory_monitor.get_stats),
        "get_memory_status": microseconds(memory_monitor.get_memory_status),
        "cycles of 400k objects": microseconds(detector.check_circular_references, 5),
        "large objects of 400k": microseconds(detector.analyze_large_objects, 5),
    }
    held.clear()
    memory_monitor.configure(check_interval=0.1)
    loads = [json_load, regex_load, *([embedding_load] if model() is not None else [])]
    for work in loads:
        results[work.__name__] = overhead(work, rounds)
    return results


def machine() -> dict[str, Any]:
    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    return {
        "cpu": names[0] if names else platform.processor(),
        "cpu_info": _core.cpu_info(),
        "threads": _core.thread_count(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "psutil": psutil.__version__,
        "commit": commit.stdout.strip(),
        "command": " ".join(["python", *sys.argv]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    check()
    report = {"machine": machine(), "results": measure(arguments.rounds)}
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
