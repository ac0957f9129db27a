"""Text in, unit vectors out, on a CUDA device: ours beside sentence-transformers in 16 bits.

    python benchmarks/bench_gpu.py [--model NAME] [--texts N] [--rounds N] [--engines WORD ...]
        [--rows N]

As bench_encoder.py: every engine in a process of its own, in turn, results compared first. Then,
for ours: which share of a call is tokenizing, the model, and the rest, and a call whose vectors
stay on the device; how long torch takes for the model's products alone, which is cuBLAS's own
speed; what the device's memory holds; the lookup of 256 queries among a million rows on the device,
beside our CPU and a plain product by torch; and half's conversions in device memory, beside
torch's.
Without a device nothing is measured, and nothing written.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import bench_encoder
import cache_vectors
import gpu_engines
import harness
import numpy as np
import texts as text_sets
from numpy.typing import NDArray

from ai_model_optimizations import DeviceArray, EmbeddingModel, _core, devices, half

#: Elements that half converts: more than any cache of the device holds.
HALVES = 64 << 20


def start_workers(words: list[str], sets_file: Path) -> dict[str, bench_encoder.Worker]:
    """A process for each engine that can be loaded here."""
    workers = {}
    for name in gpu_engines.ENGINES:
        if words and not any(word in name for word in words):
            continue
        worker = bench_encoder.Worker(name, sets_file, __file__)
        if "error" in worker.loaded:
            harness.missing(name, worker.loaded["error"])
            worker.close()
            continue
        workers[name] = worker
    return workers


def sets_of(count: int) -> dict[str, list[str]]:
    """Four lengths: those of bench_encoder.py, and texts that fill a model of 512 tokens."""
    sets = {name: text_sets.text_set(name, count) for name in text_sets.LENGTHS}
    longs = sets["long"]
    sets["full"] = [" ".join(longs[(i + j) % count] for j in range(6)) for i in range(count)]
    return sets


def used_memory() -> int:
    """Megabytes that this process has on the device, as the driver counts them."""
    fields = ["--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    lines = subprocess.run(["nvidia-smi", *fields], capture_output=True, text=True).stdout
    for line in lines.splitlines():
        pid, used = line.split(",")
        if int(pid) == os.getpid():
            return int(used)
    return 0


def shares(model: EmbeddingModel, texts: list[str], rounds: int) -> dict[str, float]:
    """Seconds of a whole call, of tokenizing alone and of the model alone (medians)."""
    tokens = model._tokenizer.pack(texts)

    def forward() -> None:
        model._encoder.encode(tokens.token_ids, tokens.offsets, True, 0, model.dimension)

    works = {
        "call": lambda: model.encode(texts),
        "call_kept_on_device": lambda: model.encode(texts, keep_on_device=True),
        "tokenizing": lambda: model._tokenizer.pack(texts),
        "model": forward,
    }
    timed = harness.interleave(
        {name: harness.stopwatch(work) for name, work in works.items()}, rounds
    )
    medians = {name: seconds["median"] for name, seconds in timed.items()}
    return {**medians, "outside_model": 1.0 - medians["model"] / medians["call"]}


def products_alone(model: EmbeddingModel, tokens: int, rounds: int) -> float:
    """Seconds that torch, so cuBLAS, takes for the model's products of so many tokens in fp16."""
    import torch

    sizes = model._folder.architecture.sizes
    hidden, inner = int(sizes["hidden"]), int(sizes["intermediate"])
    shapes = [(3 * hidden, hidden), (hidden, hidden), (inner, hidden), (hidden, inner)]
    options: dict[str, Any] = {"device": "cuda", "dtype": torch.float16}
    pairs = [
        (torch.randn(tokens, k, **options), torch.randn(k, n, **options)) for n, k in shapes
    ]

    def work() -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(int(sizes["layers"])):
            for x, w in pairs:
                torch.mm(x, w)
        torch.cuda.synchronize()
        return time.perf_counter() - start

    work()
    return float(np.median([work() for _ in range(rounds)]))


def inside(sets: dict[str, list[str]], rounds: int) -> dict[str, Any]:
    """What is known of ours alone, in f16; and the tokens of each set."""
    start = used_memory()
    model = EmbeddingModel.load(gpu_engines.model_name(), dtype="f16", device="cuda")
    result: dict[str, Any] = {"lengths": {}}
    for name, texts in sets.items():
        tokens = int(model.count_tokens(texts).sum())
        measured: dict[str, float] = {"tokens": tokens, **shares(model, texts, rounds)}
        # In the chunks that the device gets: neither much larger nor much smaller.
        chunk = min(tokens, 16384)
        try:
            measured["products_alone"] = products_alone(model, chunk, rounds) * tokens / chunk
            measured["share_of_products"] = measured["products_alone"] / measured["model"]
        except ImportError as error:
            harness.missing("the products alone", error)
        result["lengths"][name] = measured
    result["weights_mb"] = model.memory_bytes / 1e6
    result["device_memory_mb"] = used_memory() - start
    return result


def torch_lookup(stored: NDArray[np.float32], queries: NDArray[np.float32]) -> Callable[[], object]:
    """Each query's best row by one product in fp16: not exact, and without a threshold."""
    import torch

    rows = torch.from_numpy(stored).cuda().half()

    def search() -> object:
        asked = torch.from_numpy(queries).cuda().half()
        scores, found = (asked @ rows.T).max(dim=1)
        return scores.cpu(), found.cpu()

    return search


def lookups(sets: dict[str, list[str]], rows: int, rounds: int) -> dict[str, Any]:
    """Seconds of a lookup of 256 queries at threshold 0.85 among `rows`, the answers compared."""
    model = EmbeddingModel.load(gpu_engines.model_name(), dtype="f16", device="cuda")
    vectors = model.encode([text for texts in sets.values() for text in texts])
    queries = vectors[:256]
    stored = cache_vectors.enlarge(vectors[256:], rows)
    contexts = np.zeros(max(len(stored), len(queries)), np.int64)
    works: dict[str, Callable[[], object]] = {}
    answers = []
    for name, device in {"cuda": 0, "cpu": devices.CPU}.items():
        index = _core.EmbeddingIndex(stored.shape[1], device=device)
        index.add_many(stored, contexts[: len(stored)])
        index.optimize()
        works[name] = partial(index.search_many, queries, contexts[: len(queries)], 0.85, 1)
        answers.append(index.search_many(queries, contexts[: len(queries)], 0.85, 1))
        if device != devices.CPU and not index.device_state["searches"]:
            raise SystemExit(f"bench_gpu: the device did not search: {index.device_state}")
    assert all(np.array_equal(got, expected) for got, expected in zip(*answers, strict=True))
    try:
        works["torch matmul fp16"] = torch_lookup(stored, queries)
    except ImportError as error:
        harness.missing("torch's product", error)
    timed = harness.interleave(
        {name: harness.stopwatch(work) for name, work in works.items()}, rounds
    )
    return {"rows": len(stored), "queries": len(queries), "dim": stored.shape[1], "seconds": timed}


def halves(count: int, rounds: int) -> dict[str, Any]:
    """Seconds of conversions in device memory, into arrays that are there; results compared."""
    values = np.random.default_rng(0).standard_normal(count, dtype=np.float32)
    wide, wider = (DeviceArray((count,), "float32", 0) for _ in range(2))
    wide.copy_from(values)
    small = half.f32_to_f16(wide)
    assert np.array_equal(small.numpy(), half.f32_to_f16(values))
    works: dict[str, Callable[[], object]] = {
        "f32_to_f16": partial(half.f32_to_f16, wide, small),
        "f16_to_f32": partial(half.f16_to_f32, small, wider),
    }
    try:
        import torch
    except ImportError as error:
        harness.missing("torch's conversions", error)
    else:

        def copy(source: torch.Tensor, target: torch.Tensor) -> None:
            target.copy_(source)
            torch.cuda.synchronize()

        of_wide, of_small = torch.from_dlpack(wide), torch.from_dlpack(small)
        works["torch f32_to_f16"] = partial(copy, of_wide, torch.empty_like(of_small))
        works["torch f16_to_f32"] = partial(copy, of_small, torch.empty_like(of_wide))
    timed = harness.interleave(
        {name: harness.stopwatch(work) for name, work in works.items()}, rounds
    )
    return {"elements": count, "bytes_read_and_written": 6 * count, "seconds": timed}


def main() -> None:
    parser = argparse.ArgumentParser(description="Embedding on a CUDA device beside the peers")
    parser.add_argument("--model", default="", help="a name or folder; the default model")
    parser.add_argument("--texts", type=int, default=2048, help="texts of each length")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows that lookups search")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engines", nargs="+", default=[], help="those whose names hold a word")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        name, channel, sets_path = arguments.serve
        bench_encoder.serve(gpu_engines.ENGINES[name], int(channel), sets_path)
        return
    problem = devices.cuda_problem()
    if problem is not None:
        raise SystemExit(f"bench_gpu: nothing is measured: {problem}")
    os.environ["AIMO_BENCH_MODEL"] = arguments.model
    harness.set_threads(len(os.sched_getaffinity(0)))
    sets = sets_of(arguments.texts)
    ours = inside(sets, arguments.rounds)
    found = lookups(sets, arguments.rows, arguments.rounds)
    converted = halves(HALVES, arguments.rounds)
    tokens = {name: int(length["tokens"]) for name, length in ours["lengths"].items()}
    with tempfile.TemporaryDirectory() as folder:
        sets_file = Path(folder) / "sets.json"
        sets_file.write_text(json.dumps(sets))
        workers = start_workers(arguments.engines, sets_file)
        try:
            results = bench_encoder.measure(workers, sets, arguments.rounds, tokens)
        finally:
            for worker in workers.values():
                worker.close()
    device = {**_core.cuda_device(0), **_core.cuda_versions()}
    model = Path(gpu_engines.model_name()).name
    measured = {"device": device, "model": model, "inside": ours, "lookup": found}
    measured |= {"half": converted, **results}
    harness.save(f"gpu-{model}", measured)


if __name__ == "__main__":
    main()
