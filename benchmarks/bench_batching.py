"""Dynamic batching and selection beside their peers, over one model, in one run.

    python benchmarks/bench_batching.py --kind short

Concurrent callers of one text each go through BatchEmbeddingProcessor, through mixedbread's
`batched` and through infinity's batch handler (where they are installed: `pip install batched` and
`pip install --no-deps infinity_emb`), beside plain `encode` of the same texts at once and one by
one. The rounds of all are interleaved; figures are medians over the rounds. Every vector is
compared, bit for bit, with what plain `encode` gives.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import importlib.util
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


# ---- concurrent callers ----


async def callers(embed: Embed, texts: list[str], count: int, expected: Any) -> dict[str, float]:
    """Share the texts out to `count` callers, one text at a time each; check every vector."""
    latencies: list[float] = []
    position = 0

    async def caller() -> None:
        nonlocal position
        while position < len(texts):
            mine, position = position, position + 1
            began = time.perf_counter()
            vector = await embed(texts[mine])
            latencies.append(time.perf_counter() - began)
            if not np.array_equal(vector, expected[mine]):
                raise AssertionError(f"text {mine}: the vector differs from plain encode's")

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(count)))
    took = time.perf_counter() - began
    return {
        "texts_per_second": len(texts) / took,
        "p50_ms": float(np.quantile(latencies, 0.5)) * 1e3,
        "p99_ms": float(np.quantile(latencies, 0.99)) * 1e3,
    }


def ours(
    model: Any, texts: list[str], count: int, expected: Any, workers: int = 1
) -> dict[str, float]:
    async def main() -> dict[str, float]:
        async with BatchEmbeddingProcessor(
            batch_size=32, model=model, cache_mb=0, workers=workers
        ) as processor:
            await processor.warmup()
            return await callers(processor.embed, texts, count, expected)

    return asyncio.run(main())


def mixedbread(model: Any, texts: list[str], count: int, expected: Any) -> dict[str, float]:
    from batched import aio

    async def main() -> dict[str, float]:
        embed = aio.dynamically(lambda batch: list(model.encode(batch)), batch_size=32)
        await embed(texts[0])
        return await callers(embed, texts, count, expected)

    return asyncio.run(main())


def infinity(model: Any, texts: list[str], count: int, expected: Any) -> dict[str, float]:
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

    async def main() -> dict[str, float]:
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


def offline(model: Any, texts: list[str], count: int, expected: Any) -> dict[str, float]:
    began = time.perf_counter()
    vectors = model.encode(texts, batch_size=32)
    took = time.perf_counter() - began
    assert np.array_equal(vectors, expected)
    return {"texts_per_second": len(texts) / took}


def one_by_one(model: Any, texts: list[str], count: int, expected: Any) -> dict[str, float]:
    part = texts[: max(1, len(texts) // 4)]
    began = time.perf_counter()
    for text in part:
        model.encode([text])
    return {"texts_per_second": len(part) / (time.perf_counter() - began)}


# ---- the processor alone ----


def idle_latency(model: Any, texts: list[str]) -> dict[str, float]:
    """What an idle processor adds to one short text: both are timed in turn."""

    async def main() -> dict[str, float]:
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


def loop_lag(model: Any, texts: list[str], one_call: bool) -> dict[str, float]:
    """How late the event loop is while 1,000 texts are embedded, in one call or in 1,000."""

    async def main() -> dict[str, float]:
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
            thousand = (texts * (1000 // len(texts) + 1))[:1000]
            if one_call:
                await processor.process_batch(thousand)
            else:
                await asyncio.gather(*map(processor.embed, thousand))
            running = False
            await watcher
        return {
            "p50_ms": float(np.quantile(lags, 0.5)) * 1e3,
            "p99_ms": float(np.quantile(lags, 0.99)) * 1e3,
            "max_ms": max(lags) * 1e3,
        }

    return asyncio.run(main())


def selection(model: Any, texts: list[str]) -> dict[str, float]:
    """Time of a choice among four models, and how well latencies are predicted."""
    with AdaptiveModelSelector() as selector:
        for i in range(4):
            languages = ["en", "tr"] if i % 2 else None
            selector.register(f"m{i}", model, quality=i, languages=languages)
            selector.load(f"m{i}")
        times, errors = [], []
        for text in texts[:1000]:
            began = time.perf_counter()
            choice = selector.select(text, max_latency_ms=1e4)
            times.append(time.perf_counter() - began)
            runs = []
            for _ in range(3):
                began = time.perf_counter()
                model.encode([text])
                runs.append((time.perf_counter() - began) * 1e3)
            assert choice.predicted_ms is not None
            measured = statistics.median(runs)
            errors.append(abs(choice.predicted_ms - measured) / measured)
        return {
            "select_p50_us": statistics.median(times) * 1e6,
            "predicted_within_25_percent": float(np.mean(np.array(errors) <= 0.25)),
            "error_p50": statistics.median(errors),
            "error_p90": float(np.quantile(errors, 0.9)),
        }


# ---- the run ----


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", help="name or path; the default model when not given")
    parser.add_argument("--kind", choices=list(LENGTHS), default="short")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--texts", type=int, default=1000, help="texts in a round")
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    set_thread_count(arguments.threads)
    model = EmbeddingModel.load(*([arguments.model] if arguments.model else []))
    texts = text_set(arguments.kind, arguments.texts)
    expected = model.encode(texts, batch_size=32)
    ways: dict[str, Callable[..., dict[str, float]]] = {
        "offline encode": offline,
        "one by one": one_by_one,
        "BatchEmbeddingProcessor": ours,
        "the same, workers=2": functools.partial(ours, workers=2),
    }
    for name, way in (("batched", mixedbread), ("infinity_emb", infinity)):
        if importlib.util.find_spec(name) is None:
            harness.missing(name, "not installed")
        else:
            ways[name] = way
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            rounds[name].append(way(model, texts, arguments.callers, expected))
    results: dict[str, Any] = {
        name: {key: statistics.median(r[key] for r in taken) for key in taken[0]}
        for name, taken in rounds.items()
    }
    speed = {name: result["texts_per_second"] for name, result in results.items()}
    mine = speed["BatchEmbeddingProcessor"]
    # Ratios are taken within a round, where the machine's state is the same.
    ratios = {
        f"over {name}": statistics.median(
            a["texts_per_second"] / b["texts_per_second"]
            for a, b in zip(rounds["BatchEmbeddingProcessor"], rounds[name], strict=True)
        )
        for name in ways
        if name != "BatchEmbeddingProcessor"
    }
    results["ratios"] = ratios
    results["idle"] = idle_latency(model, texts)
    results["loop lag, one call"] = loop_lag(model, texts, one_call=True)
    results["loop lag, 1,000 calls"] = loop_lag(model, texts, one_call=False)
    results["selection"] = selection(model, texts)

    tokens = float(np.mean(model.count_tokens(texts)))
    print(f"{len(texts)} {arguments.kind} texts, {tokens:.0f} tokens on average, "
          f"{arguments.callers} callers, {arguments.rounds} rounds")  # fmt: skip
    for name in ways:
        figures = "  ".join(f"{key} {value:.1f}" for key, value in results[name].items())
        print(f"{name:24} {figures}")
    for name, ratio in ratios.items():
        print(f"{mine:.0f} texts/s {name}: {ratio:.2f}")
    for name in ("idle", "loop lag, one call", "loop lag, 1,000 calls", "selection"):
        figures = "  ".join(f"{key} {value:.3f}" for key, value in results[name].items())
        print(f"{name:24} {figures}")
    harness.save(
        f"batching-{arguments.kind}",
        {
            "texts": {"kind": arguments.kind, "count": len(texts), "mean_tokens": tokens},
            "callers": arguments.callers,
            "rounds": arguments.rounds,
            "results": results,
        },
    )


if __name__ == "__main__":
    main()
