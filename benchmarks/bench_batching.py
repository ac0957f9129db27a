"""Dynamic batching and model selection compared with their peers, on one model, in one run.

    python benchmarks/bench_batching.py --kind short
    python benchmarks/bench_batching.py --engine openvino --kind mixed

Concurrent callers with one text each go through BatchEmbeddingProcessor, mixedbread's `batched` and
infinity's batch handler, all with default settings except for batches of 32. The baselines are
plain `encode` of the same texts, all at once and one by one, and sentence-transformers one by one,
as most services do it. (`pip install --no-deps batched infinity_emb`; both also need `requests`,
torch and transformers.) Rounds are interleaved; figures are medians over the rounds. Every vector
must equal that of plain `encode` bit for bit, except with OpenVINO, whose vectors depend on the
batch.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import importlib
import logging
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import harness
import numpy as np
from texts import LENGTHS, text_set

from ai_model_optimizations import AdaptiveModelSelector, BatchEmbeddingProcessor, EmbeddingModel
from ai_model_optimizations._core import set_thread_count

Embed = Callable[[str], Awaitable[Any]]
Figures = dict[str, float]
SERVED = "BatchEmbeddingProcessor"
TOLERANCE = 0.0  # for each element of a vector


def check(vectors: Any, expected: Any) -> None:
    """Compare vectors with those of plain encode."""
    if TOLERANCE == 0.0:
        assert np.array_equal(vectors, expected), "a vector differs from plain encode's"
    else:
        assert np.abs(vectors - expected).max() <= TOLERANCE, "a vector differs from encode's"


# ---- concurrent callers ----


async def callers(embed: Embed, texts: list[str], count: int, expected: Any) -> Figures:
    """Divide the texts among `count` callers, each sending one at a time; check every vector."""
    latencies: list[float] = []
    position = 0

    async def caller() -> None:
        nonlocal position
        while position < len(texts):
            mine, position = position, position + 1
            began = time.perf_counter()
            vector = await embed(texts[mine])
            latencies.append(time.perf_counter() - began)
            check(vector, expected[mine])

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(count)))
    took = time.perf_counter() - began
    return {
        "texts_per_second": len(texts) / took,
        "p50_ms": float(np.quantile(latencies, 0.5)) * 1e3,
        "p99_ms": float(np.quantile(latencies, 0.99)) * 1e3,
    }


def ours(model: Any, texts: list[str], count: int, expected: Any, workers: int = 1) -> Figures:
    async def main() -> Figures:
        async with BatchEmbeddingProcessor(
            batch_size=32, model=model, cache_mb=0, workers=workers
        ) as processor:
            await processor.warmup()
            return await callers(processor.embed, texts, count, expected)

    return asyncio.run(main())


def mixedbread(model: Any, texts: list[str], count: int, expected: Any) -> Figures:
    from batched import aio

    async def main() -> Figures:
        embed = aio.dynamically(lambda batch: list(model.encode(batch)), batch_size=32)
        await embed(texts[0])
        return await callers(embed, texts, count, expected)

    return asyncio.run(main())


def infinity(model: Any, texts: list[str], count: int, expected: Any) -> Figures:
    from infinity_emb.inference.batch_handler import BatchHandler
    from infinity_emb.primitives import EmbeddingDtype

    class Replica:
        capabilities = frozenset({"embed"})
        embedding_dtype = EmbeddingDtype.float32

        def encode_pre(self, sentences: list[str]) -> list[str]:
            return sentences

        def encode_core(self, sentences: list[str]) -> Any:
            return model.encode(sentences)

        def encode_post(self, vectors: Any) -> Any:
            return vectors

        def tokenize_lengths(self, sentences: list[str]) -> list[int]:
            return [len(sentence) for sentence in sentences]

    async def main() -> Figures:
        handler = BatchHandler(model_replicas=[Replica()], max_batch_size=32)
        await handler.spawn()

        async def embed(text: str) -> Any:
            return (await handler.embed([text]))[0][0]

        try:
            await embed(texts[0])
            return await callers(embed, texts, count, expected)
        finally:
            await handler.shutdown()

    return asyncio.run(main())


def offline(model: Any, texts: list[str], count: int, expected: Any) -> Figures:
    began = time.perf_counter()
    vectors = model.encode(texts)
    took = time.perf_counter() - began
    check(vectors, expected)
    return {"texts_per_second": len(texts) / took}


def one_by_one(model: Any, texts: list[str], count: int, expected: Any) -> Figures:
    part = texts[: max(1, len(texts) // 4)]
    began = time.perf_counter()
    for text in part:
        model.encode([text])
    return {"texts_per_second": len(part) / (time.perf_counter() - began)}


@functools.cache
def before() -> Any:
    """What most services use today: sentence-transformers in fp32."""
    from encoder_engines import SentenceTransformers

    peer = SentenceTransformers()
    peer.load()
    return peer


def one_by_one_before(model: Any, texts: list[str], count: int, expected: Any) -> Figures:
    part = texts[: max(1, len(texts) // 8)]
    cosines = np.sum(before().encode(part) * expected[: len(part)], axis=1)
    assert cosines.min() > 0.999, "a vector is not that of sentence-transformers"
    return one_by_one(before(), part, count, expected)


# ---- the processor alone ----


def idle_latency(model: Any, texts: list[str]) -> Figures:
    """Latency that an idle processor adds to one short text; `encode` is timed in turn with it."""

    async def main() -> Figures:
        async with BatchEmbeddingProcessor(model=model, cache_mb=0) as processor:
            await processor.warmup()
            plain, through = [], []
            for text in texts[:500]:
                began = time.perf_counter()
                model.encode([text])
                middle = time.perf_counter()
                await processor.embed(text)
                through.append(time.perf_counter() - middle)
                plain.append(middle - began)
        return {
            "encode_p50_ms": statistics.median(plain) * 1e3,
            "processor_p50_ms": statistics.median(through) * 1e3,
            "added_ms": statistics.median(b - a for a, b in zip(plain, through, strict=True)) * 1e3,
        }

    return asyncio.run(main())


def loop_lag(model: Any, texts: list[str], one_call: bool) -> Figures:
    """How late the event loop runs while texts are embedded, in one call or one call per text."""

    async def main() -> Figures:
        async with BatchEmbeddingProcessor(model=model, cache_mb=0) as processor:
            await processor.warmup()
            lags: list[float] = []
            running = True

            async def watch() -> None:
                while running:
                    began = time.perf_counter()
                    await asyncio.sleep(0.001)
                    lags.append(time.perf_counter() - began - 0.001)

            watcher = asyncio.create_task(watch())
            await asyncio.sleep(0.05)
            if one_call:
                await processor.process_batch(texts)
            else:
                await asyncio.gather(*map(processor.embed, texts))
            running = False
            await watcher
        return {
            "p50_ms": float(np.quantile(lags, 0.5)) * 1e3,
            "p99_ms": float(np.quantile(lags, 0.99)) * 1e3,
            "max_ms": max(lags) * 1e3,
        }

    return asyncio.run(main())


def selection(model: Any) -> Figures:
    """Time to choose among four models, and how accurate latency predictions are.

    The choice is timed by itself, and again right after the model has run and filled the caches.
    """
    texts = text_set("mixed", 450)
    with AdaptiveModelSelector() as selector:
        for i in range(4):
            languages = ["en", "tr"] if i % 2 else None
            selector.register(f"m{i}", model, quality=i, languages=languages)
            selector.load(f"m{i}")
        times: dict[bool, list[float]] = {False: [], True: []}
        errors = []
        for after_a_run in (False, True):
            for text in texts:
                began = time.perf_counter()
                choice = selector.select(text, max_latency_ms=1e4)
                times[after_a_run].append(time.perf_counter() - began)
                if not after_a_run:
                    continue
                runs = []
                for _ in range(3):
                    began = time.perf_counter()
                    model.encode([text])
                    runs.append((time.perf_counter() - began) * 1e3)
                assert choice.predicted_ms is not None
                measured = statistics.median(runs)
                errors.append(abs(choice.predicted_ms - measured) / measured)
    return {
        "select_p50_us": statistics.median(times[False]) * 1e6,
        "select_p99_us": float(np.quantile(times[False], 0.99)) * 1e6,
        "select_after_a_run_p50_us": statistics.median(times[True]) * 1e6,
        "predicted_within_25_percent": float(np.mean(np.array(errors) <= 0.25)),
        "error_p50": statistics.median(errors),
        "error_p90": float(np.quantile(errors, 0.9)),
    }


# ---- the run ----


def load(engine: str, dtype: str) -> Any:
    """Load all-MiniLM-L6-v2 into an engine."""
    if engine == "openvino":
        from encoder_engines import OpenVino

        peer = OpenVino("f32")
        peer.load()
        return peer
    return EmbeddingModel.load(dtype=dtype)


def ways() -> dict[str, Callable[..., Figures]]:
    """What is compared, as name -> function."""
    found: dict[str, Callable[..., Figures]] = {
        "offline encode": offline,
        "one by one": one_by_one,
        SERVED: ours,
    }
    if TOLERANCE == 0.0:  # an OpenVINO request takes one call at a time
        found["the same, workers=2"] = functools.partial(ours, workers=2)
    for name, module, way in (
        ("batched", "batched", mixedbread),
        ("infinity_emb", "infinity_emb", infinity),
        ("sentence-transformers, one by one", "sentence_transformers", one_by_one_before),
    ):
        try:
            importlib.import_module(module)
        except ImportError as error:
            harness.missing(name, error)
        else:
            found[name] = way
    logging.getLogger().setLevel(logging.WARNING)  # infinity logs on the root logger
    logging.getLogger("infinity_emb").setLevel(logging.WARNING)
    return found


def compare(model: Any, texts: list[str], count: int, rounds: int) -> dict[str, Any]:
    """Run everything in turn with `count` callers; medians, and ratios within each round."""
    expected = model.encode(texts)
    taken: dict[str, list[Figures]] = {name: [] for name in ways()}
    for _ in range(rounds):
        for name, way in ways().items():
            taken[name].append(way(model, texts, count, expected))
    results: dict[str, Any] = {
        name: {key: statistics.median(figures[key] for figures in all_rounds)
               for key in all_rounds[0]}
        for name, all_rounds in taken.items()
    }  # fmt: skip
    for name in taken:
        if name != SERVED:
            results[name]["processor_is_times_as_fast"] = statistics.median(
                a["texts_per_second"] / b["texts_per_second"]
                for a, b in zip(taken[SERVED], taken[name], strict=True)
            )
    return results


def show(title: str, results: dict[str, Figures]) -> None:
    """Print a table."""
    print(title)
    for name, figures in results.items():
        line = "  ".join(f"{key} {value:.3g}" for key, value in figures.items())
        print(f"  {name:34} {line}")


def main() -> None:
    global TOLERANCE
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--engine", choices=["ours", "openvino"], default="ours")
    parser.add_argument("--dtype", default="auto", help="of our engine")
    parser.add_argument("--kind", choices=[*LENGTHS, "mixed"], default="short")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--texts", type=int, default=900, help="texts in a round")
    parser.add_argument("--callers", default="64,8,1", help="numbers of concurrent callers")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    harness.set_threads(arguments.threads)
    set_thread_count(arguments.threads)
    model = load(arguments.engine, arguments.dtype)
    TOLERANCE = 0.0 if arguments.engine == "ours" else 1e-4
    texts = text_set(arguments.kind, arguments.texts)
    results: dict[str, Any] = {}
    if arguments.engine == "ours":
        results["alone"] = {
            "idle": idle_latency(model, text_set("short", 500)),
            "loop lag, one call": loop_lag(model, text_set("short", 1000), one_call=True),
            "loop lag, 1,000 calls": loop_lag(model, text_set("short", 1000), one_call=False),
            "loop lag, one call, 900 long": loop_lag(model, text_set("long", 900), one_call=True),
            "selection": selection(model),
        }
        show("alone", results["alone"])
    for count in map(int, arguments.callers.split(",")):
        # Few callers need longer for the same number of texts.
        part = texts if count >= 32 else texts[: max(1, len(texts) // 3)]
        title = f"{count} callers"
        results[title] = compare(model, part, count, arguments.rounds)
        show(title, results[title])
    mean_tokens = float(np.mean([len(text) for text in texts])) / 4.5
    if arguments.engine == "ours":
        mean_tokens = float(np.mean(model.count_tokens(texts)))
    harness.save(
        "-".join(["batching", arguments.kind] + [arguments.engine] * (arguments.engine != "ours")),
        {
            "engine": arguments.engine,
            "dtype": getattr(model, "dtype", "f32"),
            "texts": {"kind": arguments.kind, "count": len(texts), "mean_tokens": mean_tokens},
            "rounds": arguments.rounds,
            "results": results,
        },
    )


if __name__ == "__main__":
    main()
