"""A chat stream over banking77: a plain content service against the optimized one.

Users ask in their own words what others have asked before: intents and, within an intent,
phrasings follow Zipf's law, and 64 users take turns at random. The service answers by the nearest
intent. Both services get the same messages in turns; then the stream is run again with each user
behind a wall.

An answer is judged twice: wrong against the service is one that the plain service does not give to
this message, wrong against the label is one of another intent where the plain service was right.
Texts that had not come before are reported apart: they alone say what meaning brings.

The service knows intents by the first half of each intent's texts; the stream is drawn from the
second. With --limit the threshold is calibrated on pairs of the first half.

    python benchmarks/bench_content.py --banking77 DIR [--threads 2] [--length 4000]

The data are PolyAI's banking77 (train.csv, test.csv; CC BY 4.0).
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import itertools
import random
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import harness


def read_intents(folder: Path) -> dict[str, list[str]]:
    """The texts of each intent, each text once."""
    intents: dict[str, list[str]] = defaultdict(list)
    seen: set[str] = set()
    for name in ("train.csv", "test.csv"):
        with (folder / name).open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                text = " ".join(row["text"].split())
                if text and text not in seen:
                    seen.add(text)
                    intents[row["category"]].append(text)
    return dict(intents)


def zipf_weights(count: int, exponent: float) -> list[float]:
    return [1 / (rank + 1) ** exponent for rank in range(count)]


def draw_stream(
    intents: dict[str, list[str]], length: int, users: int, exponent: float, seed: int
) -> list[tuple[str, str, int]]:
    """(text, intent, user) of each message."""
    numbers = random.Random(seed)
    names = sorted(intents)
    numbers.shuffle(names)
    texts = {name: numbers.sample(intents[name], len(intents[name])) for name in names}
    chosen = numbers.choices(names, zipf_weights(len(names), exponent), k=length)
    return [
        (
            numbers.choices(texts[name], zipf_weights(len(texts[name]), exponent))[0],
            name,
            numbers.randrange(users),
        )
        for name in chosen
    ]


def calibration_pairs(
    intents: dict[str, list[str]], count: int, seed: int
) -> list[tuple[str, str, bool]]:
    """Pairs of texts, each with its nearest of the same and of another intent among a few."""
    from ai_model_optimizations import EmbeddingModel

    numbers = random.Random(seed)
    model = EmbeddingModel.load()
    labelled = [(text, name) for name, texts in sorted(intents.items()) for text in texts]
    sample = numbers.sample(labelled, min(count, len(labelled)))
    vectors = model.encode([text for text, _ in sample])
    cosines = vectors @ vectors.T
    pairs = []
    for i, (text, name) in enumerate(sample):
        cosines[i, i] = -1.0
        best = int(cosines[i].argmax())
        pairs.append((text, sample[best][0], sample[best][1] == name))
    return pairs


def run_stream(
    stream: list[tuple[str, str, int]],
    plain: Any,
    manager: Any,
    walls: bool,
) -> dict[str, Any]:
    """Ask both services and judge the answers."""
    from ai_model_optimizations import report

    messages = [text for text, _, _ in stream]
    contexts = [("user", user) if walls else "" for _, _, user in stream]
    a, b = report.measure(plain, manager, messages, contexts)
    counted = manager.get_optimization_statistics()["optimization_stats"]
    seen: set[Any] = set()
    novel = 0
    against_service = against_label = 0
    for (text, intent, _), context, before, after in zip(
        stream, contexts, a.answers, b.answers, strict=True
    ):
        novel += (text, context) not in seen
        seen.add((text, context))
        against_service += before != after
        against_label += after[0] != f"answer: {intent}" and before[0] == f"answer: {intent}"
    total = len(stream)
    return {
        "messages": total,
        "novel": novel,
        "exact_hits": counted["exact_hits"],
        "semantic_hits": counted["semantic_hits"],
        "hit_rate": counted["hit_rate"],
        "novel_hit_rate": counted["semantic_hits"] / max(novel, 1),
        "wrong_against_service": against_service / total,
        "wrong_against_label": against_label / total,
        "plain": a.to_dict(),
        "optimized": b.to_dict(),
    }


def loop_lag(manager: Any, messages: list[str], seconds: float) -> dict[str, float]:
    """How late the event loop is, in ms, while handlers call `find_response` without awaiting.

    Every handler yields between two messages, as a websocket handler that awaits the next one does.
    """
    lags: list[float] = []
    asked = itertools.count()
    cycle = itertools.cycle(messages)
    end = time.perf_counter() + seconds

    async def handler() -> None:
        while time.perf_counter() < end:
            manager.find_response(next(cycle))
            next(asked)
            await asyncio.sleep(0.002)

    async def ticks() -> None:
        while time.perf_counter() < end:
            start = time.perf_counter()
            await asyncio.sleep(0.001)
            lags.append((time.perf_counter() - start - 0.001) * 1e3)

    async def main() -> None:
        await asyncio.gather(ticks(), *(handler() for _ in range(2)))

    asyncio.run(main())
    lags.sort()
    return {
        "messages": next(asked),
        "p50_ms": lags[len(lags) // 2],
        "p99_ms": lags[int(len(lags) * 0.99)],
        "max_ms": lags[-1],
        "threads": threading.active_count(),
    }


def main() -> None:
    """Measure and write results/content-<row>.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--banking77", type=Path, required=True)
    parser.add_argument("--length", type=int, default=4000)
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--zipf", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, help="calibrate to this share of wrong hits")
    parser.add_argument("--threshold", type=float, default=0.85)
    parser.add_argument("--plain", default="auto")
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    harness.set_threads(options.threads)

    from ai_model_optimizations import EmbeddingModel, ModelQuantizer
    from ai_model_optimizations.report import PlainService, optimized_service, plain_model

    intents = read_intents(options.banking77)
    tune = {name: texts[: len(texts) // 2] for name, texts in intents.items()}
    ask = {name: texts[len(texts) // 2 :] for name, texts in intents.items()}
    stream = draw_stream(ask, options.length, options.users, options.zipf, options.seed)
    examples = {f"{name}:{i}": text for name, ts in tune.items() for i, text in enumerate(ts[:1])}
    answers = {key: f"answer: {key.split(':')[0]}" for key in examples}

    full = EmbeddingModel.load(dtype="f32")
    small = ModelQuantizer().quantize_model(full)
    model, name = plain_model(full, options.plain)
    del full
    plain = PlainService(model, examples, answers)

    def fresh() -> Any:
        manager = optimized_service(small, examples, answers)
        manager.semantic_cache.threshold = threshold
        return manager

    threshold = options.threshold
    if options.limit is not None:
        from ai_model_optimizations import SmartCache

        calibrator = SmartCache(embedder=small)
        pairs = calibration_pairs(tune, 3000, options.seed)
        found = calibrator.calibrate(pairs, options.limit, show=False)
        threshold = found.threshold if found.threshold is not None else threshold
    print(f"threshold {threshold}")
    results: dict[str, Any] = {"plain_engine": name, "options": {
        key: value for key, value in vars(options).items() if isinstance(value, (int, float))
    }}  # fmt: skip
    for kind, walls in (("shared", False), ("walls", True)):
        manager = fresh()
        found_here = run_stream(stream, plain, manager, walls)
        results[kind] = {"threshold": manager.semantic_cache.threshold, **found_here}
        print(kind, {k: v for k, v in found_here.items() if not isinstance(v, dict)})
        print("   plain    ", found_here["plain"])
        print("   optimized", found_here["optimized"])
    manager = fresh()
    asyncio.run(manager.warmup())
    results["loop_lag"] = loop_lag(manager, [text for text, _, _ in stream], 10.0)
    print("loop lag", results["loop_lag"])
    if not options.no_save:
        harness.save("content", results)


if __name__ == "__main__":
    main()
