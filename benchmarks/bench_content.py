"""A chat stream over banking77: a plain content service against the optimized one.

Users ask in their own words what others have asked before: intents and, within an intent,
phrasings follow Zipf's law (exponent 1, as words and questions do), and each message comes from one
of 64 users at random. Both services get the same messages, interleaved; then the stream is run
again with a separate cache context for each user. The stream starts with empty caches, so results
are also given by quarter; a longer stream of the same kind shows the steady state.

The service embeds a message, compares it with one text of each intent, and returns the answer of
the message's label. It is never wrong, so every wrong answer is a false hit of the caches, or a
repeat of one. Texts that have not occurred before are reported separately: only they show what
semantic matching adds. Intents whose answer depends on a word of the question are left out.

The plain service takes the same time for every message, so it is asked only one turn in
--plain-every, interleaved with the optimized one, which is asked all of them.

The texts of each intent are split into two halves. The threshold is the lowest candidate at which
wrong answers stay within --limit on each of six streams of one half; reported results come from
streams of the other. Wrong answers within a stream are correlated, as popular texts recur, so the
sample is the set of streams; a confidence interval over messages would be misleading.

    python benchmarks/bench_content.py --banking77 DIR [--threads 2] [--length 4000]

The data are PolyAI's banking77 (train.csv, test.csv; CC BY 4.0).
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import harness
import numpy as np

# Intents whose answer depends on a word of the question, such as a currency.
WITH_SLOTS = (
    "atm_support", "card_acceptance", "country_support", "exchange_rate", "exchange_via_app",
    "fiat_currency_support", "supported_cards_and_currencies", "transfer_timing",
)  # fmt: skip
LADDER = [round(0.88 - 0.02 * step, 2) for step in range(20)]
STREAMS = 6  # for tuning, and for reporting
WORKER_MESSAGES = 200
PARTS = ("quality", "shared", "walls", "loop_lag", "two_workers_pss_mb")


class Message(NamedTuple):
    """A user's text and its intent."""

    text: str
    intent: str
    user: int


def answer_of(intent: str) -> str:
    return f"answer: {intent}"


def read_intents(folder: Path) -> dict[str, list[str]]:
    """The texts of each intent, each text once."""
    intents: dict[str, list[str]] = defaultdict(list)
    seen: set[str] = set()
    for name in ("train.csv", "test.csv"):
        with (folder / name).open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                text = " ".join(row["text"].split())
                if text and text not in seen and row["category"] not in WITH_SLOTS:
                    seen.add(text)
                    intents[row["category"]].append(text)
    return dict(intents)


def zipf_weights(count: int, exponent: float) -> list[float]:
    return [1 / (rank + 1) ** exponent for rank in range(count)]


def draw_stream(
    intents: dict[str, list[str]], length: int, users: int, exponent: float, seed: int
) -> list[Message]:
    """Messages drawn from `intents`; equal arguments give equal streams."""
    numbers = random.Random(seed)
    names = sorted(intents)
    numbers.shuffle(names)
    texts = {name: numbers.sample(intents[name], len(intents[name])) for name in names}
    chosen = numbers.choices(names, zipf_weights(len(names), exponent), k=length)
    return [
        Message(
            numbers.choices(texts[name], zipf_weights(len(texts[name]), exponent))[0],
            name,
            numbers.randrange(users),
        )
        for name in chosen
    ]


def judge(stream: Sequence[Message], answers: Sequence[str | None], walls: bool) -> dict[str, Any]:
    """Hit rates and wrong answers; an answer is None where the caches had none."""
    seen: set[Any] = set()
    quarters = [[0, 0] for _ in range(4)]
    novel = novel_hits = novel_wrong = hits = wrong = 0
    for number, (message, answer) in enumerate(zip(stream, answers, strict=True)):
        key = (message.text, message.user if walls else 0)
        new, hit = key not in seen, answer is not None
        bad = hit and answer != answer_of(message.intent)
        seen.add(key)
        quarter = quarters[4 * number // len(stream)]
        quarter[0] += hit
        quarter[1] += 1
        hits, wrong = hits + hit, wrong + bad
        if new:
            novel, novel_hits, novel_wrong = novel + 1, novel_hits + hit, novel_wrong + bad
    total = len(stream)
    return {
        "messages": total,
        "hit_rate": hits / total,
        "hit_rate_by_quarter": [hit / count for hit, count in quarters],
        "wrong_of_answers": wrong / total,
        "novel": novel,
        "novel_hit_rate": novel_hits / novel,
        "novel_wrong_of_hits": novel_wrong / max(novel_hits, 1),
    }


def answers_of_caches(
    stream: Sequence[Message],
    vectors: Mapping[str, Any],
    threshold: float,
    agreement: Any,
    walls: bool = False,
) -> list[str | None]:
    """The answers that a manager's caches alone give to a stream."""
    from ai_model_optimizations.content.answers import AnswerCaches, Found

    caches = AnswerCaches(
        threshold=threshold,
        ttl=None,
        max_entries=len(stream),
        guard="auto",
        agreement=agreement,
        mode="serve",
    )
    answers: list[str | None] = []
    for text, intent, user in stream:
        context = ("user", user) if walls else ""
        found = caches.find_exact(text, context)
        if found is None:
            similar = caches.find_similar(text, context, vectors[text], 0)
            found = None if similar is None else similar[0]
        if found is None:
            new = Found(answer_of(intent), "label", "all")
            caches.store(text, context, new, vectors[text], 0, 0.01)
        answers.append(None if found is None else found[0])
    return answers


def tuned_threshold(
    streams: Sequence[Sequence[Message]], vectors: Mapping[str, Any], agreement: Any, limit: float
) -> float:
    """The lowest candidate threshold at which every stream stays within the limit."""
    chosen = 1.0
    for threshold in LADDER:
        for stream in streams:
            answers = answers_of_caches(stream, vectors, threshold, agreement)
            if judge(stream, answers, False)["wrong_of_answers"] > limit:
                return chosen
        chosen = threshold
    return chosen


class Labelled:
    """A plain service's work, and the right answer; everything else is the plain service's."""

    def __init__(self, service: Any, intent_of: Mapping[str, str]) -> None:
        self.service = service
        self.model = service.model
        self._intent_of = intent_of

    def find_response(self, user_message: str) -> tuple[str, str]:
        found = self.service.find_response(user_message)
        intent = self._intent_of.get(user_message)
        return found if intent is None else (answer_of(intent), "semantic")


class Services:
    """Both services over the same texts of the intents."""

    def __init__(self, intents: dict[str, list[str]], threshold: float, engine: str) -> None:
        from ai_model_optimizations import EmbeddingModel, ModelQuantizer
        from ai_model_optimizations.report import PlainService, plain_model

        self.texts = {name: texts[0] for name, texts in intents.items()}
        self.answers = {name: answer_of(name) for name in intents}
        self.intent_of = {text: name for name, texts in intents.items() for text in texts}
        self.threshold = threshold
        full = EmbeddingModel.load(dtype="f32")
        self.small = ModelQuantizer().quantize_model(full)
        model, self.engine = plain_model(full, engine)
        self.plain = Labelled(PlainService(model, self.texts, self.answers), self.intent_of)

    def optimized(self) -> Any:
        """A manager with empty caches."""
        from ai_model_optimizations import BatchEmbeddingProcessor, OptimizedContentManager
        from ai_model_optimizations.report import PlainService, Shared

        processor = BatchEmbeddingProcessor(model=self.small)
        shared = Shared(processor, self.small.memory_bytes)
        service = Labelled(PlainService(shared, self.texts, self.answers), self.intent_of)
        return OptimizedContentManager.wrap(
            service, embedder=processor, similarity_threshold=self.threshold
        )


def run_stream(
    stream: Sequence[Message], services: Services, walls: bool, plain_every: int
) -> dict[str, Any]:
    """Ask both services and judge the answers."""
    from ai_model_optimizations import report

    manager = services.optimized()
    contexts = [("user", message.user) if walls else "" for message in stream]
    a, b = report.measure(
        services.plain, manager, [m.text for m in stream], contexts, plain_every=plain_every
    )
    counted = manager.get_optimization_statistics()["optimization_stats"]
    right = [answer_of(message.intent) for message in stream]
    asked = [name for i, name in enumerate(right) if i // report.TURN % plain_every == 0]
    assert [answer for answer, _ in a.answers] == asked, "the plain service is not always right"
    wrong = sum(answer != name for (answer, _), name in zip(b.answers, right, strict=True))
    plain, optimized = a.to_dict(), b.to_dict()
    return {
        "messages": len(stream),
        "exact_hits": counted["exact_hits"],
        "semantic_hits": counted["semantic_hits"],
        "hit_rate": counted["hit_rate"],
        "wrong_of_answers": wrong / len(stream),
        "plain": plain,
        "optimized": optimized,
        "model_memory": optimized["model_mb"] / plain["model_mb"] - 1,
        "throughput": optimized["messages_per_second"] / plain["messages_per_second"],
        "p50": optimized["p50_ms"] / plain["p50_ms"] - 1,
    }


def loop_lag(services: Services, messages: list[str], seconds: float) -> dict[str, float]:
    """How late the event loop runs, in ms, while handlers call `find_response` synchronously.

    Every handler yields between two messages, as a websocket handler that awaits the next one does.
    """
    manager = services.optimized()
    asyncio.run(manager.warmup())
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


# ---- two workers ----


def work(kind: str, options: argparse.Namespace) -> None:
    """Run as a worker: answer messages, report it, and stay alive until stdin closes."""
    from ai_model_optimizations import (
        BatchEmbeddingProcessor,
        EmbeddingModel,
        OptimizedContentManager,
    )
    from ai_model_optimizations.report import PlainService, Shared, plain_model

    intents = read_intents(options.banking77)
    texts = {name: found[0] for name, found in intents.items()}
    answers = {name: answer_of(name) for name in intents}
    find: Callable[[str], Any]
    if kind == "plain":
        model, _ = plain_model(None, options.plain)
        find = PlainService(model, texts, answers).find_response
    else:
        small = EmbeddingModel.load()  # mapped from AIMO_CACHE_DIR
        processor = BatchEmbeddingProcessor(model=small)
        service = PlainService(Shared(processor, small.memory_bytes), texts, answers)
        find = OptimizedContentManager.wrap(service, embedder=processor).find_response
    for message in draw_stream(intents, WORKER_MESSAGES, options.users, options.zipf, 9):
        find(message.text)
    print("ready", flush=True)
    sys.stdin.read()


def two_workers(kind: str, arguments: Sequence[str]) -> float:
    """PSS of two workers together, in MB: shared pages are counted once."""
    import psutil

    workers: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "AIMO_CACHE_DIR": cache}
        try:
            for _ in range(2):
                command = [sys.executable, __file__, *arguments, "--worker", kind]
                worker = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
                )
                workers.append(worker)
                assert worker.stdout is not None
                if not any(line.strip() == b"ready" for line in worker.stdout):
                    raise RuntimeError(f"a {kind} worker did not start")
            found = [psutil.Process(worker.pid).memory_full_info().pss for worker in workers]
            return sum(found) / 1e6
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()


# ---- the command ----


def measure_quality(intents: dict[str, list[str]], options: argparse.Namespace) -> dict[str, Any]:
    """Tune on one half, evaluate on the other: with agreement, and with the nearest entry alone."""
    from ai_model_optimizations import Agreement, EmbeddingModel

    tune = {name: texts[: len(texts) // 2] for name, texts in intents.items()}
    ask = {name: texts[len(texts) // 2 :] for name, texts in intents.items()}
    texts = [text for found in intents.values() for text in found]
    vectors = dict(zip(texts, EmbeddingModel.load().encode(texts), strict=True))

    def draw(half: dict[str, list[str]], length: int, seed: int) -> list[Message]:
        return draw_stream(half, length, options.users, options.zipf, seed)

    seeds = range(options.seed, options.seed + STREAMS)
    tuning = [draw(tune, options.length, 100 + seed) for seed in seeds]
    results: dict[str, Any] = {}
    for name, agreement in (("agreement", Agreement()), ("nearest alone", None)):
        threshold = tuned_threshold(tuning, vectors, agreement, options.limit)
        rows: dict[str, Any] = {"threshold": threshold}
        for length, walls in itertools.product((options.length, options.long), (False, True)):
            judged = []
            for seed in seeds if length == options.length else (options.seed,):
                stream = draw(ask, length, seed)
                answers = answers_of_caches(stream, vectors, threshold, agreement, walls)
                judged.append(judge(stream, answers, walls))
            label = f"{'walls' if walls else 'shared'}, {length} messages"
            rows[label] = mean_of(judged)
            print(name, threshold, label, _short(rows[label]), flush=True)
        results[name] = rows
    return results


def mean_of(judged: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean over streams, and the stream with the most wrong answers."""
    found: dict[str, Any] = {"streams": len(judged)}
    for key in judged[0]:
        found[key] = np.mean([row[key] for row in judged], axis=0).tolist()
    found["wrong_of_answers_worst"] = max(row["wrong_of_answers"] for row in judged)
    return found


def _short(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: [round(v, 3) for v in value] if isinstance(value, list) else round(value, 4)
        for key, value in row.items()
        if not isinstance(value, (dict, str))
    }


def recorded() -> dict[str, Any]:
    """The results of an earlier run on this row, by part."""
    path = harness.RESULTS / f"content-{harness.machine()['row']}.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    return {name: kept[name] for name in PARTS if name in kept}


def main() -> None:
    """Measure and write results/content-<row>.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--banking77", type=Path, required=True)
    parser.add_argument("--length", type=int, default=4000)
    parser.add_argument("--long", type=int, default=16_000)
    parser.add_argument("--timed", type=int, default=16_000, help="messages of the timed stream")
    parser.add_argument("--plain-every", type=int, default=8)
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--zipf", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=0.02, help="largest share of wrong answers")
    parser.add_argument("--plain", default="auto")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="parts to measure")
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--worker", choices=("plain", "optimized"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    harness.set_threads(options.threads)
    if options.worker is not None:
        work(options.worker, options)
        return
    intents = read_intents(options.banking77)
    chosen = options.only or PARTS
    results = recorded()
    if "quality" in chosen:
        results["quality"] = measure_quality(intents, options)
    threshold = results["quality"]["agreement"]["threshold"]
    services = Services(intents, threshold, options.plain)
    results["plain_engine"] = services.engine
    ask = {name: texts[len(texts) // 2 :] for name, texts in intents.items()}
    stream = draw_stream(ask, options.timed, options.users, options.zipf, options.seed)
    for kind, part in (("shared", stream), ("walls", stream[: len(stream) // 4])):
        if kind not in chosen:
            continue
        results[kind] = run_stream(part, services, kind == "walls", options.plain_every)
        print(kind, _short(results[kind]), flush=True)
        print("   plain    ", _short(results[kind]["plain"]))
        print("   optimized", _short(results[kind]["optimized"]))
    if "loop_lag" in chosen:
        results["loop_lag"] = loop_lag(services, [message.text for message in stream], 10.0)
        print("loop lag", _short(results["loop_lag"]), flush=True)
    if "two_workers_pss_mb" in chosen:
        pss = {kind: two_workers(kind, sys.argv[1:]) for kind in ("plain", "optimized")}
        results["two_workers_pss_mb"] = {**pss, "change": pss["optimized"] / pss["plain"] - 1}
        print("two workers", _short(results["two_workers_pss_mb"]))
    if not options.no_save:
        harness.save("content", results)


if __name__ == "__main__":
    main()
