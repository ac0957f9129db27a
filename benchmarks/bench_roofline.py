"""Where the encoder's time goes: each operation's share, and how close it is to the limit.

    python benchmarks/bench_roofline.py [--seconds S] [--batches N] [--core-hour-price P]

One thread. Times are the best of many passes over one chunk of tokens, taken between operations
inside the core. Limits are the throughput of the row's multiply instruction with all operands in
registers (c/bench_peak.c, compiled here with cc). Products include what is fused into them:
activation, residual, layer norm. Then follow, without peers, other models' shapes with random
weights, time against tokens, two threads against one, and how much the process grows over many
batches of random shape.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import harness

harness.set_threads(1)

import encoder_engines  # noqa: E402  must follow setting the number of threads
import numpy as np  # noqa: E402
import psutil  # noqa: E402
import texts as text_sets  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from ai_model_optimizations import _core  # noqa: E402

CHUNK = 128  # tokens, as the CPU backend cuts them
DTYPES = ("f16", "bf16", "int8")


class Shape(NamedTuple):
    """An encoder's sizes."""

    layers: int
    hidden: int
    heads: int
    intermediate: int
    vocabulary: int


MINILM = Shape(6, 384, 12, 1536, 30522)
OTHERS = {
    "bert-base": Shape(12, 768, 12, 3072, 32000),
    "paraphrase-multilingual-MiniLM-L12-v2": Shape(12, 384, 12, 1536, 250037),
}


class Batch(NamedTuple):
    """Packed sequences."""

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]


def random_encoder(shape: Shape, dtype: str) -> _core.Encoder:
    """An encoder of this shape; its weights are noise."""
    encoder = _core.Encoder(
        dtype=dtype, layers=shape.layers, hidden=shape.hidden, heads=shape.heads,
        intermediate=shape.intermediate, vocabulary=shape.vocabulary, positions=512,
        token_types=2, first_position=0, activation="gelu", poolings=["mean"],
        layer_norm_epsilon=1e-12, dense=[],
    )  # fmt: skip
    random = np.random.default_rng(0)
    inputs = {"query.weight": shape.hidden, "attention_output.weight": shape.hidden,
              "up.weight": shape.hidden, "down.weight": shape.intermediate}  # fmt: skip
    for name, per_layer in _core.encoder_tensor_names():
        if name.startswith("dense_"):
            continue
        for layer in range(shape.layers if per_layer else 1):
            if dtype == "int8" and name in inputs:
                channels = random.choice(inputs[name], 4, replace=False)
                encoder.set_outliers(name, layer, np.sort(channels).astype(np.int32))
            size = tensor_shape(name, shape)
            values = random.standard_normal(size, dtype=np.float32) * np.float32(0.04)
            encoder.set_tensor(name, layer, values + np.float32(name.endswith("norm.weight")))
    encoder.seal()
    return encoder


def tensor_shape(name: str, shape: Shape) -> tuple[int, ...]:
    """What the encoder expects under a tensor's name."""
    tables = {"word_embeddings": shape.vocabulary, "position_embeddings": 512,
              "token_type_embeddings": 2}  # fmt: skip
    if name in tables:
        return tables[name], shape.hidden
    outputs = shape.intermediate if name.startswith("up.") else shape.hidden
    if name.endswith(".bias") or "norm" in name:
        return (outputs,)
    return outputs, shape.intermediate if name == "down.weight" else shape.hidden


def operations_per_token(shape: Shape, length: float) -> dict[str, float]:
    """Multiplications and additions of each operation, for sequences of about this length."""
    hidden, wide = shape.hidden, shape.intermediate
    products = {"qkv": 3 * hidden * hidden, "attention": 2 * length * hidden,
                "attention_output": hidden * hidden, "up": hidden * wide,
                "down": wide * hidden}  # fmt: skip
    return {name: 2.0 * shape.layers * count for name, count in products.items()}


def peaks() -> dict[str, float]:
    """Operations per second of one core, by type and row; empty without a C compiler."""
    source = harness.ROOT / "benchmarks" / "c" / "bench_peak.c"
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "bench_peak")
        try:
            subprocess.run(["cc", "-O3", str(source), "-o", program], check=True)
            output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            harness.missing("limits", error)
            return {}
    limits: dict[str, float] = json.loads(output)
    return limits


def limit_of(limits: dict[str, float], dtype: str, operation: str) -> float | None:
    """The limit of an operation on this machine's row."""
    kinds = {"int8": ("amx", "avx512_vnni", "avx2"), "bf16": ("amx", "avx512_bf16")}
    strongest = ("amx", "avx512_bf16", "avx512_vnni", "avx512", "avx2")
    here = _core.cpu_info()["row"]
    enabled = strongest[strongest.index(here) :] if here in strongest else ()
    if operation == "attention":
        if "amx" in enabled and dtype in kinds:
            return limits.get("bf16 amx")
        if "avx512_vnni" in enabled and dtype == "int8" and "int8 avx512_vnni" in limits:
            # One product uses 16-bit integers, at half the rate of the other's 8-bit ones.
            return limits["int8 avx512_vnni"] * 2 / 3
    else:
        for row in kinds.get(dtype, ()):
            if row in enabled:
                return limits.get(f"{dtype} {row}")
    for row in ("avx512", "avx2"):
        if row in enabled:
            return limits.get(f"f32 {row}")
    return None


def chunks(name: str) -> list[Batch]:
    """Real texts of a length, tokenized, in batches of about one chunk."""
    engine = encoder_engines.TokenEngine()
    engine.load_tokenizer()
    rows = [e.ids for e in engine.tokenizer.encode_batch_fast(text_sets.text_set(name, 256))]
    found, batch = [], [rows[0]]
    for row in rows[1:]:
        if sum(map(len, batch)) + len(row) > CHUNK:
            found.append(batch)
            batch = []
        batch.append(row)
    return [pack(batch) for batch in found[:8]]


def pack(rows: list[list[int]]) -> Batch:
    """Sequences one after another."""
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return Batch(np.concatenate(rows).astype(np.int32), offsets)


def of_length(length: int, tokens: int, vocabulary: int) -> Batch:
    """Random sequences of one length, ``tokens`` in all or a little more."""
    count = -(-tokens // length)
    random = np.random.default_rng(1)
    return pack([list(random.integers(0, vocabulary, length)) for _ in range(count)])


def best_seconds(encoder: _core.Encoder, batches: list[Batch], budget: float) -> dict[str, float]:
    """Best time of each operation, in seconds per token."""
    best = [{} for _ in batches]  # type: list[dict[str, float]]
    end = time.perf_counter() + budget
    while time.perf_counter() < end:
        for batch, so_far in zip(batches, best, strict=True):
            for name, seconds in encoder.operation_seconds(*batch).items():
                so_far[name] = min(seconds, so_far.get(name, seconds))
    tokens = sum(len(batch.ids) for batch in batches)
    return {name: sum(one[name] for one in best) / tokens for name in best[0]}


def roofline(
    encoder: _core.Encoder, shape: Shape, dtype: str, batches: list[Batch],
    limits: dict[str, float], budget: float,
) -> dict[str, Any]:  # fmt: skip
    """Microseconds per token, share and percentage of the limit of every operation."""
    seconds = best_seconds(encoder, batches, budget)
    lengths = np.concatenate([np.diff(batch.offsets) for batch in batches])
    # Each token attends to its whole sequence, so long sequences count more.
    work = operations_per_token(shape, float((lengths**2).sum() / lengths.sum()))
    total = sum(seconds.values())
    result: dict[str, Any] = {"us_per_token": 1e6 * total, "operations": {}}
    for name, took in seconds.items():
        limit = limit_of(limits, dtype, name)
        entry = {"us_per_token": 1e6 * took, "share": took / total}
        if name in work and limit:
            entry["of_limit"] = work[name] / took / limit
        result["operations"][name] = entry
    return result


def best_encode(encoder: _core.Encoder, batch: Batch, budget: float) -> float:
    """Best time of a whole batch, in seconds."""
    best, end = float("inf"), time.perf_counter() + budget
    while time.perf_counter() < end:
        start = time.perf_counter()
        encoder.encode(*batch, True, 0, encoder.dimension)
        best = min(best, time.perf_counter() - start)
    return best


def straight_line(encoder: _core.Encoder, budget: float) -> dict[str, Any]:
    """Fit time against tokens by a line, for texts of 19 tokens; also the deviations."""
    counts = [4, 8, 16, 32, 64, 128]
    batches = [of_length(19, 19 * count, MINILM.vocabulary) for count in counts]
    seconds = [best_encode(encoder, batch, budget) for batch in batches]
    tokens = [19 * count for count in counts]
    slope, start = np.polyfit(tokens, seconds, 1, w=1 / np.array(seconds))
    off = max(abs(start + slope * n - s) / s for n, s in zip(tokens, seconds, strict=True))
    return {
        "tokens": tokens,
        "ms": [1e3 * s for s in seconds],
        "us_per_token": 1e6 * slope,
        "start_ms": 1e3 * start,
        "largest_deviation": off,
    }


def threads_scaling(encoder: _core.Encoder, budget: float) -> float:
    """Speedup of two threads over one, measured in turn."""
    batch = of_length(19, 2432, MINILM.vocabulary)
    best = {1: float("inf"), 2: float("inf")}
    for _ in range(4):
        for count in best:
            _core.set_thread_count(count)
            best[count] = min(best[count], best_encode(encoder, batch, budget / 4))
    _core.set_thread_count(1)
    return best[1] / best[2]


def resident_growth(encoder: _core.Encoder, batches: int) -> float:
    """Growth in bytes over batches of random shape, not counting the first fiftieth of them."""
    process, random = psutil.Process(), np.random.default_rng(2)
    before = process.memory_info().rss
    for i in range(batches):
        lengths = random.integers(1, 13, random.integers(1, 9))
        rows = [list(random.integers(0, MINILM.vocabulary, length)) for length in lengths]
        encoder.encode(*pack(rows), True, 0, encoder.dimension)
        if i == batches // 50:
            before = process.memory_info().rss
    return float(process.memory_info().rss - before)


def print_roofline(title: str, result: dict[str, Any]) -> None:
    print(f"{title}: {result['us_per_token']:.1f} us per token")
    for name, entry in result["operations"].items():
        of_limit = f"{entry['of_limit']:6.0%} of the limit" if "of_limit" in entry else ""
        print(f"  {name:18}{entry['us_per_token']:8.2f} us{entry['share']:6.0%}  {of_limit}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Shares of time and percentages of limits")
    parser.add_argument("--seconds", type=float, default=1.5, help="for each measurement")
    parser.add_argument(
        "--core-hour-price", type=float, default=0.04, help="for the cost per million tokens"
    )
    parser.add_argument("--batches", type=int, default=10_000, help="of random shape, for growth")
    arguments = parser.parse_args()
    from ai_model_optimizations.embedding.model import EmbeddingModel

    limits = peaks()
    results: dict[str, Any] = {"limits": limits, "models": {}, "lines": {}, "two_threads": {}}
    for dtype in DTYPES:
        encoder = EmbeddingModel.load(encoder_engines.model_folder(), dtype=dtype)._encoder
        lengths: dict[str, Any] = {}
        for name in text_sets.LENGTHS:
            lengths[name] = roofline(
                encoder, MINILM, dtype, chunks(name), limits, arguments.seconds
            )
            print_roofline(f"all-MiniLM-L6-v2 {dtype} {name}", lengths[name])
        full = [of_length(512, 512, MINILM.vocabulary)]
        lengths["512 tokens"] = roofline(encoder, MINILM, dtype, full, limits, arguments.seconds)
        print_roofline(f"all-MiniLM-L6-v2 {dtype} 512 tokens", lengths["512 tokens"])
        per_million = lengths["paragraph"]["us_per_token"] / 3600 * arguments.core_hour_price
        results["models"][f"all-MiniLM-L6-v2 {dtype}"] = {
            "lengths": lengths,
            "price_per_million_tokens": per_million,
        }
        results["lines"][dtype] = straight_line(encoder, arguments.seconds / 6)
        results["two_threads"][dtype] = threads_scaling(encoder, arguments.seconds)
        line = results["lines"][dtype]
        print(
            f"  {dtype}: {line['us_per_token']:.1f} us per token and {line['start_ms']:.2f} ms, "
            f"within {line['largest_deviation']:.0%}; two threads "
            f"{results['two_threads'][dtype]:.2f} times one; 1M tokens cost {per_million:.4f}"
        )
    growth = resident_growth(encoder, arguments.batches)  # of the last type, int8
    results["resident_growth"] = {"batches": arguments.batches, "mb": growth / 1e6}
    print(f"{arguments.batches} batches of random shape: {growth / 1e6:+.2f} MB resident")
    for name, shape in OTHERS.items():
        for dtype in DTYPES:
            encoder = random_encoder(shape, dtype)
            result = roofline(
                encoder, shape, dtype, [of_length(42, 126, shape.vocabulary)], limits,
                arguments.seconds,
            )  # fmt: skip
            print_roofline(f"{name} {dtype}, 42 tokens", result)
            results["models"][f"{name} {dtype}"] = {"lengths": {"42 tokens": result}}
    results["core_hour_price"] = arguments.core_hour_price
    harness.save("roofline", results)


if __name__ == "__main__":
    main()
