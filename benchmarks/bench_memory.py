"""The cost of watching memory: the allocation hook, the census, and their peers, in one run.

    python benchmarks/bench_memory.py [--rounds 15] [--output benchmarks/results/memory.json]
        [--census-in PYTHON ...]    other interpreters with this package, for the census

The hook's estimate is checked before anything is timed. Configurations alternate within each round
and the ratio to the plain run is taken per round, in CPU time, so that a busy machine disturbs both
alike. memray and scalene are measured when they are installed.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from ai_model_optimizations import _core
from ai_model_optimizations.memory_monitor import allocations, census

COUNT = 300_000
R = 128 << 10
MORE_ROUNDS = 10  # the hook slows short loads by 1%, and a single ratio is off by as much


def dropped_loop() -> None:
    """300k dicts, lists and strings, each dropped at once."""
    for i in range(COUNT):
        _ = {"id": i}
        _ = [i, i]
        _ = "item %d" % i  # noqa: UP031


def kept_loop() -> None:
    """300k dicts, lists and strings, all alive at the end."""
    rows = []
    for i in range(COUNT):
        rows.append({"id": i, "tags": [i, i], "name": str(i)})


def json_load() -> None:
    """Encode and decode 20,000 records."""
    rows = [
        {"id": i, "name": f"name {i}", "tags": ["a", "b"], "score": i / 7} for i in range(20_000)
    ]
    assert len(json.loads(json.dumps(rows))) == 20_000


def regex_load() -> None:
    """Split and search 2 MB of text."""
    text = " ".join(f"user{i}@example.com wrote {i % 97} lines" for i in range(50_000))
    assert len(re.findall(r"\b\w+@\w+\.com\b", text)) == 50_000
    assert len(re.split(r"\s+", text)) == 200_000


def embedding_load(model_name: str) -> Callable[[], None]:
    """Embed 1,000 texts of 5 to 30 words."""
    from ai_model_optimizations import EmbeddingModel

    model = EmbeddingModel.load(model_name)
    generator = random.Random(2)
    words = ["memory", "of", "the", "vector", "a", "service", "answers", "questions", "quickly"]
    texts = [" ".join(generator.choices(words, k=generator.randrange(5, 30))) for _ in range(1000)]

    def embed() -> None:
        assert len(model.encode(texts)) == 1000

    return embed


@contextlib.contextmanager
def hook() -> Any:
    allocations.start(R)
    try:
        yield
    finally:
        allocations.stop()


@contextlib.contextmanager
def traced(frames: int) -> Any:
    tracemalloc.start(frames)
    try:
        yield
    finally:
        tracemalloc.stop()


def memray_tracker(python_allocators: bool) -> Callable[[], Any]:
    import memray

    def tracker() -> Any:
        path = Path(tempfile.mkdtemp()) / "capture.bin"
        return memray.Tracker(path, trace_python_allocators=python_allocators)

    return tracker


def configurations(peers: bool) -> dict[str, Callable[[], Any]]:
    found: dict[str, Callable[[], Any]] = {"hook": hook}
    if peers:
        found["tracemalloc 1 frame"] = lambda: traced(1)
        found["tracemalloc 10 frames"] = lambda: traced(10)
        if importlib.util.find_spec("memray"):
            found["memray"] = memray_tracker(False)
            found["memray, Python allocators"] = memray_tracker(True)
    return found


def cpu_seconds(work: Callable[[], None]) -> float:
    gc.collect()
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(work: Callable[[], None], rounds: int, peers: bool) -> dict[str, Any]:
    """Median CPU seconds of the plain run and median ratio to it of every configuration."""
    found = configurations(peers)
    plain: list[float] = []
    ratios: dict[str, list[float]] = {name: [] for name in found}
    work()
    for round_number in range(rounds):
        for name, context in found.items():
            if name != "hook" and round_number >= 3:
                continue  # peers differ so much that three rounds suffice
            before = cpu_seconds(work)
            with context():
                under = cpu_seconds(work)
            after = cpu_seconds(work)
            plain += [before, after]
            ratios[name].append(2.0 * under / (before + after))
    result: dict[str, Any] = {"plain_s": round(median(plain), 4)}
    for name, values in ratios.items():
        values.sort()
        quarter = len(values) // 4
        result[name] = round(median(values), 3)
        if name == "hook":
            result["hook, quartiles"] = [round(values[quarter], 3), round(values[-1 - quarter], 3)]
    return result


SCALENE_PROGRAM = """
import sys, time
sys.path.insert(0, {folder!r})
from bench_memory import dropped_loop, kept_loop
for work in (dropped_loop, kept_loop):
    times = []
    work()
    for _ in range(3):
        start = time.process_time(); work(); times.append(time.process_time() - start)
    print("TIME", work.__name__, sorted(times)[1], flush=True)
"""


def scalene(plain: dict[str, float]) -> dict[str, float]:
    """Ratios of the loops under scalene's memory profiler, in a process of its own."""
    if not importlib.util.find_spec("scalene"):
        return {}
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "program.py"
        program.write_text(SCALENE_PROGRAM.format(folder=str(Path(__file__).parent)))
        command = [sys.executable, "-m", "scalene", "run", "--memory", "-o", f"{folder}/p.json"]
        done = subprocess.run(
            [*command, str(program)], capture_output=True, text=True, cwd=folder, timeout=600
        )
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("TIME")]
    return {name: round(float(seconds) / plain[name], 2) for _, name, seconds in lines}


def estimate_errors(runs: int) -> dict[str, Any]:
    """One site with 100 MB in blocks of 40 to 4000 bytes, estimated `runs` times."""
    generator = random.Random(1)
    sizes = [generator.randrange(8, 4000) for _ in range(50_000)]
    truth = 0
    errors, within_one, within_two = [], 0, 0
    for seed in range(runs):
        _core.memhook_start(R, 8, seed)
        kept = [bytes(size) for size in sizes]
        snapshot = allocations.snapshot()
        allocations.stop()
        truth = sum(map(sys.getsizeof, kept)) + sys.getsizeof(kept)
        (site, *_) = [s for s in snapshot.grouped("function").sites if "estimate_errors" in str(s)]
        error = abs(site.live_bytes - truth)
        errors.append(error / truth)
        within_one += error <= site.standard_error
        within_two += error <= 2 * site.standard_error
    errors.sort()
    return {
        "live_mb": round(truth / 1e6, 1),
        "runs": runs,
        "within_10_percent": sum(e <= 0.1 for e in errors),
        "median_error": round(median(errors), 4),
        "largest_error": round(errors[-1], 4),
        "within_one_standard_error": within_one,
        "within_two_standard_errors": within_two,
    }


class _Thing:
    def __init__(self) -> None:
        self.a = []


def census_times(rounds: int) -> dict[str, Any]:
    """A census of 400k tracked objects, and its peers."""
    import sys as _sys

    kept = [(_Thing(), {"k": []}, ([],)) for _ in range(400_000 // 7)]
    gc.collect()
    ours, referents = [], []
    for _ in range(rounds):
        ours.append(census.take().seconds)
        start = time.perf_counter()
        found = gc.get_objects()
        sum(_sys.getsizeof(o) for o in found if type(o) in (list, dict, tuple))
        referents.append(time.perf_counter() - start)
        del found
    total = census.take().total_objects
    del kept
    return {
        "objects": total,
        "census_ms": round(1e3 * median(ours), 2),
        "census_best_ms": round(1e3 * min(ours), 2),
        "gc.get_objects_and_getsizeof_ms": round(1e3 * median(referents), 2),
    }


def census_elsewhere(python: str, rounds: int) -> dict[str, Any]:
    """The census in another interpreter, measured by this same file."""
    command = [python, __file__, "--census-only", "--rounds", str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def reading_times(rounds: int) -> dict[str, Any]:
    """Costs within a monitor's tick: status, and a snapshot of about 1,000 samples."""
    allocations.start(R)
    kept = [bytes(1000) for _ in range(120_000)]
    status, snapshot = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        allocations.status()
        middle = time.perf_counter()
        allocations.snapshot()
        status.append(middle - start)
        snapshot.append(time.perf_counter() - middle)
    memory = allocations.status().memory_bytes
    allocations.stop()
    del kept
    return {
        "status_us": round(1e6 * median(status), 1),
        "snapshot_us": round(1e6 * median(snapshot), 1),
        "hook_memory_bytes": memory,
    }


def machine() -> dict[str, Any]:
    model = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "")
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "cpu_info": _core.cpu_info(),
        "python": platform.python_version(),
        "commit": commit,
        "command": " ".join(["python", "benchmarks/bench_memory.py", *sys.argv[1:]]),
        "load": [round(x, 2) for x in os.getloadavg()],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--runs", type=int, default=600, help="estimates of 100 MB")
    parser.add_argument("--census-only", action="store_true")
    parser.add_argument("--census-in", action="append", default=[], metavar="PYTHON")
    parser.add_argument("--embedding", help="also embed 1,000 texts with this model")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.census_only:
        print(json.dumps({platform.python_version(): census_times(options.rounds)}))
        return
    report: dict[str, Any] = {"machine": machine(), "sample_bytes": R}
    report["estimate"] = estimate_errors(options.runs)
    assert report["estimate"]["within_10_percent"] >= 0.95 * options.runs
    loops = {
        work.__name__: compare(work, options.rounds, True) for work in (dropped_loop, kept_loop)
    }
    for name, ratio in scalene({name: loop["plain_s"] for name, loop in loops.items()}).items():
        loops[name]["scalene"] = ratio
    report["allocation_heavy_loops"] = loops
    report["real_work"] = {
        work.__name__: compare(work, MORE_ROUNDS * options.rounds, False)
        for work in (json_load, regex_load)
    }
    if options.embedding:
        embed = embedding_load(options.embedding)
        report["real_work"]["embedding_load"] = compare(embed, options.rounds, False)
    report["census"] = {platform.python_version(): census_times(options.rounds)}
    for python in options.census_in:
        report["census"].update(census_elsewhere(python, options.rounds))
    report["reading"] = reading_times(options.rounds)
    text = json.dumps(report, indent=2)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
