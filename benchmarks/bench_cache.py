"""SmartCache against faiss, hnswlib, usearch and numpy: lookup, insertion, memory, a writer.

    python benchmarks/bench_cache.py --banking77 DIR --clinc150 DIR --wordnet DIR \
        [--embeddings vectors.npy] [--sizes 1000 10000 100000 1000000] [--readers build/bench]

Queries miss and the guard is off: a lookup that finds nothing is the cache's common case.
`SmartCache` is the whole call from Python, `EmbeddingIndex` the index beneath it. Results are
checked before anything is timed; engines take turns within one run; peers that are not installed
are named and left out. With --readers, the folder where CMake built the C benchmarks, lookups are
also timed while a writer runs: by bench_cache_readers.c, which compares every answer with brute
force, and from Python.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness

Search = Callable[[Any], object]

FEWEST_TURNS = 3
#: Above this size a graph would take minutes to build.
HNSW_UP_TO = 100_000
#: Rows that are inserted one at a time.
PUTS = 100_000


def new_cache(row_dtype: str, threshold: float) -> Any:
    from ai_model_optimizations import SmartCache

    return SmartCache(
        capacity=1 << 24,
        max_bytes=1 << 36,
        threshold=threshold,
        ttl=None,
        guard=None,
        row_dtype=row_dtype,  # type: ignore[arg-type]
    )


def index_of(cache: Any) -> Any:
    return cache._table.index


def fill(cache: Any, stored: Any) -> dict[str, float]:
    """Insert all rows, the first of them one by one; returns speed, time and bytes per row."""
    before = resident_bytes()
    start = time.perf_counter()
    for row in stored[:PUTS]:
        cache.put(row, b"")
    puts = min(PUTS, len(stored)) / (time.perf_counter() - start)
    for first in range(PUTS, len(stored), PUTS):
        part = stored[first : first + PUTS]
        cache.put_many(part, [b""] * len(part))
    if cache._optimizer.thread is not None:
        cache._optimizer.thread.join()
    start = time.perf_counter()
    index_of(cache).optimize()
    return {
        "puts_per_s": round(puts),
        "optimize_s": round(time.perf_counter() - start, 3),
        "index_bytes_per_row": round(index_of(cache).memory_bytes / len(stored), 1),
        "resident_bytes_per_row": round((resident_bytes() - before) / len(stored), 1),
    }


def resident_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def check(cache: Any, queries: Any) -> None:
    """Compare with cosines over the stored rows, at thresholds that hit and that miss."""
    import numpy as np

    rows, slots, _ = index_of(cache).export()
    rows = rows.view(np.float16) if rows.dtype == np.uint16 else rows
    for query in queries:
        scores = np.empty(len(rows))
        for first in range(0, len(rows), 100_000):
            wide = rows[first : first + 100_000].astype(np.float32)
            norms = np.sqrt(np.einsum("ij,ij->i", wide, wide, dtype=np.float64))
            scores[first : first + 100_000] = (wide @ query) / norms
        scores /= np.linalg.norm(query.astype(np.float64))
        for threshold, k in ((0.85, 1), (0.6, 5), (-1.0, 3)):
            found, found_scores = index_of(cache).search(query, 1, threshold, k)
            best = np.argsort(-scores, kind="stable")[:k]
            best = best[scores[best] >= threshold]
            assert len(found) == len(best), (len(found), len(best))
            assert np.allclose(found_scores, scores[best], atol=1e-5)
    assert len(slots) == len(cache)


def peers(stored: Any) -> dict[str, tuple[Search, float]]:
    """Name -> (search for one query or a block, rows added per second)."""
    import numpy as np

    engines: dict[str, tuple[Search, float]] = {"numpy": (lambda q: np.max(stored @ q.T), 0.0)}
    dim = stored.shape[1]

    def timed(add: Callable[[Any], object]) -> float:
        start = time.perf_counter()
        add(stored)
        return round(len(stored) / (time.perf_counter() - start))

    try:
        import faiss

        for name, options in (("IndexFlatIP", ()), ("IndexFlatIPPanorama", (8,))):
            kind = getattr(faiss, name, None)
            if kind is None:
                harness.missing(f"faiss {name}", "this faiss has none")
                continue
            index = kind(dim, *options)
            search = lambda q, i=index: i.search(np.atleast_2d(q), 1)  # noqa: E731
            engines[f"faiss {name}"] = (search, timed(index.add))
    except ImportError as error:
        harness.missing("faiss", error)
    try:
        import hnswlib

        if len(stored) <= HNSW_UP_TO:
            graph = hnswlib.Index("ip", dim)
            graph.init_index(len(stored), M=16, ef_construction=100)
            graph.set_num_threads(1)
            graph.set_ef(64)
            added = timed(graph.add_items)
            engines["hnswlib M16 ef64 (approximate)"] = (lambda q: graph.knn_query(q, 1), added)
    except ImportError as error:
        harness.missing("hnswlib", error)
    try:
        from usearch.index import MetricKind, search

        engines["usearch exact"] = (
            lambda q: search(stored, q, 1, MetricKind.IP, exact=True, threads=1),
            0.0,
        )
    except ImportError as error:
        harness.missing("usearch", error)
    return engines


def take_turns(engines: dict[str, Search], queries: Any, seconds: float) -> dict[str, Any]:
    """Microseconds per call; in each round every engine runs for a twentieth of a second."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    for search in engines.values():
        search(queries[0])
    end, turns = time.perf_counter() + seconds, 0
    while time.perf_counter() < end or turns < FEWEST_TURNS:
        for name, search in engines.items():
            turn = time.perf_counter()
            for repeat in range(500):
                query = queries[(turns + repeat) % len(queries)]
                start = time.perf_counter()
                search(query)
                now = time.perf_counter()
                times[name].append(now - start)
                if now - turn > 0.05:
                    break
        turns += 1
    return {name: percentiles(taken) for name, taken in times.items()}


def percentiles(seconds: list[float]) -> dict[str, float]:
    import numpy as np

    return {
        "p50_us": round(float(np.median(seconds)) * 1e6, 2),
        "p99_us": round(float(np.quantile(seconds, 0.99)) * 1e6, 2),
    }


def times(found: dict[str, Any], ours: str) -> dict[str, float]:
    """Each peer's time as a multiple of ours."""
    base = found[ours]["p50_us"]
    return {
        name: round(taken["p50_us"] / base, 2)
        for name, taken in found.items()
        if not name.startswith(("SmartCache", "EmbeddingIndex"))
    }


def set_thread_count(count: int) -> None:
    """Set the threads of our library and of faiss; the others get theirs per call, or use one."""
    from ai_model_optimizations import _core

    _core.set_thread_count(count)
    try:
        import faiss

        faiss.omp_set_num_threads(count)
    except ImportError:
        pass


def measure_size(base: Any, asked: Any, rows: int, args: argparse.Namespace) -> dict[str, Any]:
    import cache_vectors
    import numpy as np

    stored = cache_vectors.enlarge(base, rows)
    queries = cache_vectors.misses(stored, asked, args.threshold, 300)
    set_thread_count(1)
    result: dict[str, Any] = {"rows": rows, "queries": len(queries)}
    one: dict[str, Search] = {}
    many: dict[str, Search] = {}
    for dtype in ("f16", "int8"):
        cache = new_cache(dtype, args.threshold)
        result[f"SmartCache {dtype}"] = fill(cache, stored)
        check(cache, asked[-5:])
        one[f"SmartCache {dtype}"] = cache.get_semantic_similar
        many[f"SmartCache {dtype}"] = cache.get_many
        index = index_of(cache)
        one[f"EmbeddingIndex {dtype}"] = lambda q, i=index: i.search(q, 1, args.threshold, 1)
    others = peers(stored)
    result["adds_per_s"] = {name: added for name, (_, added) in others.items() if added}
    one |= {name: search for name, (search, _) in others.items()}
    result["one_query_1_thread"] = take_turns(one, queries, args.seconds)
    result["times_one_query"] = times(result["one_query_1_thread"], "SmartCache f16")
    set_thread_count(args.threads)
    many |= {name: search for name, search in one.items() if name.startswith("faiss")}
    batch = np.ascontiguousarray(np.resize(queries, (256, queries.shape[1])))
    found = take_turns(many, batch[None], args.seconds)
    per_query = {
        name: {key: round(value / 256, 3) for key, value in taken.items()}
        for name, taken in found.items()
    }
    result[f"256_queries_{args.threads}_threads_per_query"] = per_query
    result["times_256_queries"] = times(found, "SmartCache f16")
    return result


# ---- beside a writer ---------------------------------------------------------------------------


def readers_in_c(base: Any, asked: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Run bench_cache_readers on real vectors; it prints JSON, and fails on a wrong answer."""
    import cache_vectors

    with tempfile.TemporaryDirectory() as folder:
        rows, queries = Path(folder) / "rows.f32", Path(folder) / "queries.f32"
        cache_vectors.enlarge(base, 2 * args.reader_rows).tofile(rows)
        asked[:64].tofile(queries)
        command = [
            args.readers / "bench_cache_readers", rows, queries, base.shape[1], args.reader_rows,
            args.reader_seconds, args.threads, args.threshold,
        ]  # fmt: skip
        output = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, check=True
        ).stdout
    return dict(json.loads(output))


def readers_in_python(base: Any, asked: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Lookups from one Python thread, alone and then while another thread inserts."""
    import cache_vectors

    rows = cache_vectors.enlarge(base, 2 * args.reader_rows)
    cache = new_cache("f16", args.threshold)
    fill(cache, rows[: args.reader_rows])
    done = threading.Event()

    def read(seconds: float) -> list[float]:
        taken, end, i = [], time.perf_counter() + seconds, 0
        while (start := time.perf_counter()) < end:
            cache.get_semantic_similar(asked[i % 64])
            taken.append(time.perf_counter() - start)
            i += 1
        return taken

    puts = 0

    def write() -> None:
        nonlocal puts
        entries: list[int] = []
        while not done.is_set():
            entries.append(cache.put(rows[args.reader_rows + puts % args.reader_rows], b""))
            puts += 1
            if len(entries) > 1000:
                cache.invalidate(entry=entries.pop(0))

    quiet = read(args.reader_seconds / 10)
    writer = threading.Thread(target=write)
    writer.start()
    busy = read(args.reader_seconds / 3)
    done.set()
    writer.join()
    return {
        "rows": args.reader_rows,
        "quiet": percentiles(quiet),
        "beside_a_writer": percentiles(busy),
        "puts_per_s": round(puts / (args.reader_seconds / 3)),
    }


def main() -> None:
    harness.set_threads(1)
    import cache_vectors

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    cache_vectors.add_arguments(parser)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--threshold", type=float, default=0.85)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--readers", type=Path, help="folder with bench_cache_readers")
    parser.add_argument("--reader-rows", type=int, default=100_000)
    parser.add_argument("--reader-seconds", type=float, default=60.0)
    parser.add_argument("--no-save", action="store_true", help="print only")
    args = parser.parse_args()
    base, asked = cache_vectors.real_vectors(args)
    results: dict[str, Any] = {"real_vectors": len(base) + len(asked)}

    def record(name: str, found: dict[str, Any]) -> None:
        """Save what has been measured so far, in case the rest does not finish."""
        results[name] = found
        print(json.dumps({name: found}, indent=1), flush=True)
        if not args.no_save:
            harness.save("cache", results)

    if args.readers is not None:
        record("beside_a_writer_c", readers_in_c(base, asked, args))
        record("beside_a_writer_python", readers_in_python(base, asked, args))
    for rows in args.sizes:
        record(f"rows_{rows}", measure_size(base, asked, rows, args))


if __name__ == "__main__":
    main()
