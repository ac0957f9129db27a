"""Exact lookup beside faiss, hnswlib, usearch and numpy: one query, many at once, adding, memory.

    python benchmarks/bench_cache.py --embeddings vectors.npy [--sizes 1000 10000 100000 1000000]

`vectors.npy` holds real sentence embeddings, (n, dim) float32; a held-out tenth asks, the rest is
stored, extended by noise where a size needs more. Queries miss: what is measured is a lookup that
finds nothing, the cache's common case. Results are checked before anything is timed; engines take
turns within one run; peers that are not installed are left out and said so.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ai_model_optimizations import _core

F32 = NDArray[np.float32]
Search = Callable[[F32], object]


def enlarge(base: F32, rows: int, rng: np.random.Generator) -> F32:
    """Repeat the rows of `base` with noise of a fifth of their length until there are `rows`."""
    if rows <= len(base):
        return base[:rows].copy()
    out = np.empty((rows, base.shape[1]), np.float32)
    out[: len(base)] = base
    for start in range(len(base), rows, len(base)):
        part = base[: min(len(base), rows - start)]
        noise = rng.standard_normal(part.shape, np.float32) * (0.2 / np.sqrt(part.shape[1]))
        noisy = part + noise
        noisy /= np.linalg.norm(noisy, axis=1, keepdims=True)
        out[start : start + len(part)] = noisy
    return out


def misses(stored: F32, queries: F32, threshold: float, count: int) -> F32:
    """The first queries whose best score stays below the threshold."""
    kept = []
    for start in range(0, len(queries), 256):
        block = queries[start : start + 256]
        best = (
            np.max(block @ stored.T, axis=1)
            if len(stored) <= 200_000
            else _blocked_max(block, stored)
        )
        kept.append(block[best < threshold - 0.01])
        if sum(map(len, kept)) >= count:
            break
    return np.ascontiguousarray(np.concatenate(kept)[:count])


def _blocked_max(queries: F32, stored: F32) -> NDArray[np.float32]:
    best = np.full(len(queries), -1.0, np.float32)
    for start in range(0, len(stored), 100_000):
        np.maximum(best, np.max(queries @ stored[start : start + 100_000].T, axis=1), out=best)
    return best


def check(index: _core.EmbeddingIndex, slots: NDArray[np.int64], queries: F32) -> None:
    """Compare with cosines over the stored rows, at thresholds that hit and that miss."""
    rows, exported, _ = index.export()
    assert np.array_equal(exported, slots)
    wide = (rows.view(np.float16) if rows.dtype == np.uint16 else rows).astype(np.float32)
    norms = np.sqrt(np.einsum("ij,ij->i", wide, wide, dtype=np.float64))
    for query in queries[:20]:
        scores = (
            (wide @ query).astype(np.float64) / norms / np.linalg.norm(query.astype(np.float64))
        )
        for threshold, k in ((0.85, 1), (0.6, 5), (-1.0, 3)):
            found, found_scores = index.search(query, 0, threshold, k)
            best = np.argsort(-scores, kind="stable")[:k]
            best = best[scores[best] >= threshold]
            assert len(found) == len(best), (len(found), len(best))
            assert np.allclose(found_scores, scores[best], atol=1e-5)


def peers(stored: F32, hnsw: bool) -> dict[str, tuple[Search, float]]:
    """Name -> (search for one query or a block, seconds that adding took)."""
    engines: dict[str, tuple[Search, float]] = {}
    dim = stored.shape[1]
    engines["numpy"] = (lambda q: np.max(stored @ q.T), 0.0)
    try:
        import faiss

        faiss.omp_set_num_threads(1)
        for name in ("IndexFlatIP", "IndexFlatIPPanorama"):
            kind = getattr(faiss, name, None)
            if kind is None:
                print(f"faiss has no {name}")
                continue
            index = kind(dim) if name == "IndexFlatIP" else kind(dim, 8)
            start = time.perf_counter()
            index.add(stored)
            taken = time.perf_counter() - start
            engines[f"faiss {name}"] = (lambda q, i=index: i.search(np.atleast_2d(q), 1), taken)
    except ImportError:
        print("faiss is not installed")
    if hnsw:
        try:
            import hnswlib

            graph = hnswlib.Index("ip", dim)
            graph.init_index(len(stored), M=16, ef_construction=100)
            graph.set_num_threads(1)
            graph.set_ef(64)
            start = time.perf_counter()
            graph.add_items(stored)
            taken = time.perf_counter() - start
            engines["hnswlib M16 ef64 (approximate)"] = (lambda q: graph.knn_query(q, 1), taken)
        except ImportError:
            print("hnswlib is not installed")
    try:
        from usearch.index import MetricKind, search

        engines["usearch exact f32"] = (
            lambda q: search(stored, q, 1, MetricKind.IP, exact=True, threads=1),
            0.0,
        )
    except ImportError:
        print("usearch is not installed")
    return engines


def interleaved(
    engines: dict[str, Search], queries: F32, seconds: float
) -> dict[str, dict[str, float]]:
    """Median and 99th percentile in microseconds; in each round every engine has its turn."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    for search in engines.values():
        search(queries[0])
    end = time.perf_counter() + seconds
    i = 0
    while time.perf_counter() < end or i < 5:
        for name, search in engines.items():
            turn = time.perf_counter()
            for repeat in range(200):
                query = queries[(i + repeat) % len(queries)]
                start = time.perf_counter()
                search(query)
                times[name].append(time.perf_counter() - start)
                if time.perf_counter() - turn > 0.05:
                    break
        i += 1
    return {
        name: {"p50_us": float(np.median(t) * 1e6), "p99_us": float(np.quantile(t, 0.99) * 1e6)}
        for name, t in times.items()
    }


def measure_size(base: F32, asked: F32, rows: int, args: argparse.Namespace) -> dict[str, Any]:
    rng = np.random.default_rng(rows)
    stored = enlarge(base, rows, rng)
    queries = misses(stored, asked, args.threshold, 300)
    contexts = np.zeros(rows, np.int64)
    result: dict[str, Any] = {"rows": rows, "queries": len(queries), "adds_per_s": {}}
    ours: dict[str, Search] = {}
    batch = np.ascontiguousarray(np.resize(queries, (256, queries.shape[1])))
    batch_contexts = np.zeros(256, np.int64)
    batches: dict[str, Search] = {}
    for dtype in ("f16", "int8"):
        index = _core.EmbeddingIndex(stored.shape[1], row_dtype=dtype)
        start = time.perf_counter()
        slots = index.add_many(stored, contexts)
        result["adds_per_s"][dtype] = rows / (time.perf_counter() - start)
        start = time.perf_counter()
        index.optimize()
        result[f"optimize_s_{dtype}"] = time.perf_counter() - start
        check(index, slots, asked[-50:])
        result[f"bytes_per_row_{dtype}"] = index.memory_bytes / rows
        removed = rng.permutation(rows)[: min(rows // 2, 20_000)]
        start = time.perf_counter()
        for slot in removed.tolist():
            index.remove(slot)
        for row in removed.tolist():
            index.add(stored[row], 0)
        result[f"remove_and_put_per_s_{dtype}"] = len(removed) / (time.perf_counter() - start)
        ours[f"EmbeddingIndex {dtype}"] = lambda q, i=index: i.search(q, 0, args.threshold, 1)
        batches[f"EmbeddingIndex {dtype}"] = lambda q, i=index: i.search_many(
            q, batch_contexts, args.threshold, 1
        )
    others = peers(stored, rows <= args.hnsw_up_to)
    for name, (_, taken) in others.items():
        if taken:
            result["adds_per_s"][name] = rows / taken
    _core.set_thread_count(1)
    everyone = ours | {name: search for name, (search, _) in others.items()}
    result["one_query_1_thread"] = interleaved(everyone, queries, args.seconds)
    _core.set_thread_count(args.threads)
    if "faiss IndexFlatIP" in others:
        import faiss

        faiss.omp_set_num_threads(args.threads)
        batches["faiss IndexFlatIP"] = others["faiss IndexFlatIP"][0]
    per_batch = interleaved(batches, batch[None], args.seconds)
    result[f"batch_256_{args.threads}_threads_us_per_query"] = {
        name: t["p50_us"] / 256 for name, t in per_batch.items()
    }
    return result


def machine() -> dict[str, Any]:
    lscpu = subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout
    model = [line.split(":")[1].strip() for line in lscpu.splitlines() if "Model name" in line]
    return {
        "model": model[0] if model else platform.machine(),
        "cpu_info": _core.cpu_info(),
        "threads": _core.thread_count(),
        "commit": commit.strip(),
        "command": " ".join(sys.argv),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--embeddings", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--threshold", type=float, default=0.85)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--hnsw-up-to", type=int, default=100_000)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/cache.json"))
    args = parser.parse_args()
    vectors = np.load(args.embeddings).astype(np.float32)
    np.random.default_rng(0).shuffle(vectors)
    held_out = len(vectors) // 10
    report: dict[str, Any] = {"machine": machine(), "sizes": []}
    for rows in args.sizes:
        result = measure_size(vectors[held_out:], vectors[:held_out], rows, args)
        report["sizes"].append(result)
        print(json.dumps(result, indent=1), flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
