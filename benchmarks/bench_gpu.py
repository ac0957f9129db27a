"""From text to unit vectors on a CUDA device: ours against sentence-transformers in 16 bits.

    python benchmarks/bench_gpu.py [--model NAME | --model bert-base [--tokenizer FOLDER]]
        [--tokens N] [--rounds N] [--engines WORD ...] [--rows N] [--limit SECONDS]

Ours is measured alone first: the model's share of a call, the time torch (so cuBLAS) needs for the
model's matrix products alone, and device memory. Then, as in bench_encoder.py, every engine runs in
its own process, in turn, with results compared first: four lengths of text, each repeated until
there are enough tokens, and one short text. Last come the lookup of 256 queries among a million
rows, against our CPU and a plain product by torch, and the conversions of `half` in device memory,
against torch's.

``bert-base`` has random weights. An engine that fails or takes too long to answer is named and left
out, and so is a part that fails: what was measured before is kept. Without a device nothing is
measured or written; --try-on-cpu runs the script without one, and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import bench_encoder
import cache_vectors
import gpu_engines
import harness
import numpy as np
import texts as text_sets
from numpy.typing import NDArray

from ai_model_optimizations import DeviceArray, EmbeddingModel, _core, devices, half

LENGTHS = ("short", "paragraph", "long", "full")
#: Tokens in a chunk on a device, so that products of realistic size are timed.
CHUNK = 16384
QUERIES = 256
#: Elements that half converts: more than fit in any cache of the device.
HALVES = 64 << 20
#: Below this cosine a result counts as wrong. The exact cosines are part of the record.
LEAST_COSINE = 0.99

T = TypeVar("T")


# --- Ours alone ----------------------------------------------------------------------------------


def free_memory() -> float:
    """Megabytes free on the device according to the driver; differences give the memory used.

    Per-process figures are not used, because a virtual machine may not show any.
    """
    import torch

    return torch.cuda.mem_get_info()[0] / 1e6 if torch.cuda.is_available() else 0.0


def shares(model: EmbeddingModel, texts: list[str], rounds: int) -> dict[str, float]:
    """Seconds of a call, of the model alone, and of tokenizing on one thread (medians)."""
    tokens = model._tokenizer.pack(texts)

    def forward() -> None:
        model._encoder.encode(tokens.token_ids, tokens.offsets, True, 0, model.dimension)

    works = {
        "call": lambda: model.encode(texts),
        "model": forward,
        "call_kept_on_device": lambda: model.encode(texts, keep_on_device=True),
        "tokenizing_one_thread": lambda: model._tokenizer.pack(texts),
    }
    if gpu_engines.DEVICE == "cpu":
        works.pop("call_kept_on_device")
    timed = harness.interleave(
        {name: harness.stopwatch(work) for name, work in works.items()}, rounds
    )
    medians = {name: seconds["median"] for name, seconds in timed.items()}
    count = len(tokens.token_ids)
    return {
        "tokens": count,
        **medians,
        "outside_model": 1.0 - medians["model"] / medians["call"],
        "tokens_per_second": count / medians["call"],
    }


def products_alone(model: EmbeddingModel, tokens: int, rounds: int) -> float:
    """Seconds that torch, so cuBLAS, takes for the model's products of so many tokens in fp16."""
    import torch

    sizes = model._folder.architecture.sizes
    hidden, inner = int(sizes["hidden"]), int(sizes["intermediate"])
    shapes = [(3 * hidden, hidden), (hidden, hidden), (inner, hidden), (hidden, inner)]
    on_device = gpu_engines.DEVICE != "cpu"  # where torch has no fast products in fp16
    dtype = torch.float16 if on_device else torch.float32
    options: dict[str, Any] = {"device": gpu_engines.DEVICE, "dtype": dtype}
    pairs = [(torch.randn(tokens, k, **options), torch.randn(k, n, **options)) for n, k in shapes]
    wait = torch.cuda.synchronize if on_device else lambda: None

    def work() -> float:
        wait()
        start = time.perf_counter()
        for _ in range(int(sizes["layers"])):
            for x, w in pairs:
                torch.mm(x, w)
        wait()
        return time.perf_counter() - start

    work()
    return float(np.median([work() for _ in range(rounds)]))


def one_text(model: EmbeddingModel, text: str, calls: int) -> dict[str, float]:
    """Milliseconds of one short text: the call, and the model alone."""
    tokens = model._tokenizer.pack([text])
    works: dict[str, Callable[[], object]] = {
        "call": lambda: model.encode(text),
        "model": lambda: model._encoder.encode(
            tokens.token_ids, tokens.offsets, True, 0, model.dimension
        ),
    }
    result = {}
    for name, work in works.items():
        watch = harness.stopwatch(work)
        seconds = [watch() for _ in range(calls + 20)][20:]
        result[f"{name}_p50"] = 1000 * float(np.median(seconds))
        result[f"{name}_p99"] = 1000 * float(np.quantile(seconds, 0.99))
    return result


def inside(sets: dict[str, list[str]], rounds: int, calls: int) -> dict[str, Any]:
    """Measure ours alone, in f16; also returns the tokens of each set."""
    before = free_memory()
    model = EmbeddingModel.load(gpu_engines.model_name(), dtype="f16", device=gpu_engines.DEVICE)
    lengths = {name: shares(model, sets[name], rounds) for name in LENGTHS}
    one = one_text(model, sets["short"][0], calls)
    memory = before - free_memory()
    for name, measured in lengths.items():
        chunk = min(int(measured["tokens"]), CHUNK)
        alone = products_alone(model, chunk, rounds) * measured["tokens"] / chunk
        measured["products_alone"] = alone
        measured["share_of_products"] = alone / measured["model"]
        print(
            f"{name}: {measured['tokens_per_second']:.0f} tokens/s, "
            f"{measured['outside_model']:.0%} outside the model, the products alone take "
            f"{measured['share_of_products']:.0%} of the model's time",
            flush=True,
        )
    weights = model.memory_bytes / 1e6
    print(f"one text: {one}; device memory {memory:.0f} MB, weights {weights:.0f} MB", flush=True)
    return {"lengths": lengths, "one_text_ms": one, "weights_mb": weights, "device_mb": memory}


# --- Beside the peers ----------------------------------------------------------------------------

Workers = dict[str, bench_encoder.Worker]


@contextmanager
def started(words: list[str], sets: dict[str, list[str]], limit: float) -> Iterator[Workers]:
    """A process for each engine; all load at once."""
    with tempfile.TemporaryDirectory() as folder:
        sets_file = Path(folder) / "sets.json"
        sets_file.write_text(json.dumps(sets))
        names = [n for n in gpu_engines.ENGINES if not words or any(word in n for word in words)]
        workers = {n: bench_encoder.Worker(n, sets_file, __file__, limit) for n in names}
        try:
            yield workers
        finally:
            for worker in workers.values():
                worker.close()


def leave_out(workers: Workers, name: str, reason: object) -> None:
    """Name an engine that failed, and go on without it."""
    harness.missing(name, reason)
    workers.pop(name).close()


def of_each(workers: Workers, ask: Callable[[bench_encoder.Worker], T]) -> dict[str, T]:
    """Ask every engine in turn; returns the answers."""
    answers = {}
    for name, worker in list(workers.items()):
        try:
            answers[name] = ask(worker)
        except (RuntimeError, BrokenPipeError) as error:
            leave_out(workers, name, error)
    return answers


def compared(workers: Workers) -> dict[str, dict[str, float]]:
    """Load times and smallest cosines with sentence-transformers; wrong engines are dropped."""
    for name, worker in list(workers.items()):
        if "error" in worker.loaded:
            leave_out(workers, name, worker.loaded["error"])
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: str(Path(folder) / f"{i}.npy") for i, name in enumerate(workers)}
        of_each(workers, lambda worker: worker.request("check", save=paths[worker.name]))
        vectors = {name: np.load(paths[name]).astype(np.float64) for name in workers}
    if not vectors:
        raise RuntimeError("no engine could be loaded")
    reference = next(n for n in (bench_encoder.REFERENCE, "ours f32", *vectors) if n in vectors)
    engines = {}
    for name, found in vectors.items():
        cosine = float((found * vectors[reference]).sum(axis=1).min())
        if cosine < LEAST_COSINE:
            leave_out(workers, name, f"cosine {cosine:.6f} with {reference}")
            continue
        loading = workers[name].loaded["load_seconds"]
        engines[name] = {"min_cosine": cosine, "load_seconds": loading}
    return engines


def beside_peers(
    workers: Workers, tokens: dict[str, int], rounds: int, calls: int
) -> dict[str, Any]:
    """Tokens per second of every engine and length, and milliseconds of one short text."""
    engines: dict[str, Any] = {
        name: {**found, "tokens_per_second": {}} for name, found in compared(workers).items()
    }
    for length in LENGTHS:
        seconds: dict[str, list[float]] = {name: [] for name in workers}
        for turn in range(rounds + 1):
            for name, taken in of_each(workers, lambda w, s=length: w.ask(s)).items():
                seconds[name] += [taken] if turn else []
        for name in workers:
            rates = harness.summary([tokens[length] / taken for taken in seconds[name]])
            engines[name]["tokens_per_second"][length] = rates
            print(f"{length} {name}: {rates['median']:.0f} tokens/s", flush=True)
    for name, answer in of_each(workers, lambda w: w.request("short", one_by_one=calls)).items():
        milliseconds = {"p50": 1000 * answer["seconds"], "p99": 1000 * answer["p99"]}
        engines[name]["one_text_ms"] = milliseconds
        print(f"one text {name}: {milliseconds}", flush=True)
    return engines


# --- Lookup --------------------------------------------------------------------------------------


def torch_lookup(stored: NDArray[np.float32], queries: NDArray[np.float32]) -> Callable[[], object]:
    """Each query's best row by one 16-bit matrix product: not exact, and without a threshold."""
    import torch

    rows = torch.from_numpy(stored).to(gpu_engines.DEVICE).half()

    def search() -> object:
        asked = torch.from_numpy(queries).to(gpu_engines.DEVICE).half()
        scores, found = (asked @ rows.T).max(dim=1)
        return scores.cpu(), found.cpu()

    return search


def vectors_of(texts: list[str], rows: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The rows that are searched, and the queries."""
    model = EmbeddingModel.load(gpu_engines.model_name(), dtype="f16", device=gpu_engines.DEVICE)
    vectors = model.encode(texts)
    vectors = np.resize(vectors, (max(len(vectors), 2 * QUERIES), model.dimension))
    return cache_vectors.enlarge(vectors[QUERIES:], rows), vectors[:QUERIES]


def lookups(
    stored: NDArray[np.float32], queries: NDArray[np.float32], rounds: int
) -> dict[str, Any]:
    """Seconds of a lookup of all queries at threshold 0.85, the answers compared."""
    contexts = np.zeros(max(len(stored), len(queries)), np.int64)
    works: dict[str, Callable[[], object]] = {}
    answers = []
    for name, device in {gpu_engines.DEVICE: devices.parse_device(gpu_engines.DEVICE),
                         "our CPU": devices.CPU}.items():  # fmt: skip
        index = _core.EmbeddingIndex(stored.shape[1], device=device)
        index.add_many(stored, contexts[: len(stored)])
        index.optimize()
        works[name] = partial(index.search_many, queries, contexts[: len(queries)], 0.85, 1)
        answers.append(works[name]())
        if device != devices.CPU and not index.device_state["searches"]:
            raise RuntimeError(f"the device did not search: {index.device_state}")
    if not all(np.array_equal(got, expected) for got, expected in zip(*answers, strict=True)):
        raise RuntimeError("the device's answers differ from the CPU's")
    works["torch matmul fp16"] = torch_lookup(stored, queries)
    timed = harness.interleave(
        {name: harness.stopwatch(work) for name, work in works.items()}, rounds
    )
    for name, seconds in timed.items():
        print(f"lookup {name}: {1000 * seconds['median']:.1f} ms", flush=True)
    return {"rows": len(stored), "queries": len(queries), "dim": stored.shape[1], "seconds": timed}


# --- Half conversion -----------------------------------------------------------------------------


def halves(count: int, rounds: int) -> dict[str, Any]:
    """Seconds of conversions between arrays in device memory; results are compared."""
    import torch

    values = np.random.default_rng(0).standard_normal(count, dtype=np.float32)
    wide, wider = (DeviceArray((count,), "float32", 0) for _ in range(2))
    wide.copy_from(values)
    small = half.f32_to_f16(wide)
    assert np.array_equal(small.numpy(), half.f32_to_f16(values))
    works: dict[str, Callable[[], object]] = {
        "f32_to_f16": partial(half.f32_to_f16, wide, small),
        "f16_to_f32": partial(half.f16_to_f32, small, wider),
    }

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


# --- The whole run -------------------------------------------------------------------------------


class Record:
    """The result file, written again after every part."""

    def __init__(self, name: str, keep: bool) -> None:
        self.name = name
        self.keep = keep
        self.results: dict[str, Any] = {"model": name, "failed": {}}

    def add(self, part: str, measure: Callable[[], T]) -> T | None:
        """Measure and keep a part; say so when it fails."""
        start = time.perf_counter()
        measured = None
        try:
            measured = measure()
            self.results[part] = measured
        except Exception as error:  # the other parts are still useful
            traceback.print_exc()
            self.results["failed"][part] = f"{type(error).__name__}: {error}"
        print(f"{part}: {time.perf_counter() - start:.0f} s", flush=True)
        if self.keep:
            harness.save(f"gpu-{self.name}", self.results)
        return measured


def run(arguments: argparse.Namespace, record: Record) -> None:
    """Measure all parts."""
    sets = {name: text_sets.enough_texts(name, arguments.tokens) for name in LENGTHS}
    sets["check"] = [text for name in LENGTHS for text in sets[name][:64]]
    record.results["texts"] = {name: len(texts) for name, texts in sets.items()}
    ours = record.add("inside", lambda: inside(sets, arguments.rounds, arguments.calls))
    if ours is None:
        return
    tokens = {name: int(length["tokens"]) for name, length in ours["lengths"].items()}
    distinct = list(dict.fromkeys(text for name in LENGTHS for text in sets[name]))
    with started(arguments.engines, sets, arguments.limit) as workers, ThreadPoolExecutor() as pool:
        rows = pool.submit(vectors_of, distinct, arguments.rows)  # while they load
        record.add(
            "engines",
            lambda: beside_peers(workers, tokens, arguments.rounds, arguments.calls),
        )
    record.add("lookup", lambda: lookups(*rows.result(), arguments.rounds))
    if not arguments.try_on_cpu:
        record.add("half", lambda: halves(HALVES, arguments.rounds))


def main() -> None:
    parser = argparse.ArgumentParser(description="Embedding on a CUDA device against its peers")
    parser.add_argument("--model", default="", help="a folder, or bert-base; the default model")
    parser.add_argument("--tokenizer", type=Path, help="folder whose tokenizer bert-base gets")
    parser.add_argument("--tokens", type=int, default=100_000, help="tokens of each length")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows that lookups search")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=200, help="calls with one text")
    parser.add_argument("--limit", type=float, default=40.0, help="seconds for an answer")
    parser.add_argument("--engines", nargs="+", default=[], help="parts of engine names")
    parser.add_argument("--try-on-cpu", action="store_true", help="test the script itself")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        name, channel, sets_path = arguments.serve
        bench_encoder.serve(gpu_engines.ENGINES[name], int(channel), sets_path)
        return
    if arguments.try_on_cpu:
        os.environ["AIMO_BENCH_DEVICE"] = gpu_engines.DEVICE = "cpu"
    elif (problem := devices.cuda_problem()) is not None:
        raise SystemExit(f"bench_gpu: nothing is measured: {problem}")
    harness.set_threads(len(os.sched_getaffinity(0)))
    # Peers tokenize on all cores; ours switches the library's threads off and uses its own.
    os.environ.pop("TOKENIZERS_PARALLELISM")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.model == "bert-base":
            path = Path(folder) / "bert-base"
            gpu_engines.save_bert_base(arguments.tokenizer or gpu_engines.model_folder(), path)
            os.environ["AIMO_BENCH_MODEL"] = str(path)
        elif arguments.model:
            os.environ["AIMO_BENCH_MODEL"] = arguments.model
        name = Path(arguments.model).name or "all-MiniLM-L6-v2"
        record = Record(name, keep=not arguments.try_on_cpu)
        if not arguments.try_on_cpu:
            record.results["device"] = {**_core.cuda_device(0), **_core.cuda_versions()}
        run(arguments, record)
    if record.results["failed"]:
        raise SystemExit(f"bench_gpu: failed: {record.results['failed']}")


if __name__ == "__main__":
    main()
