"""``ai-model-optimizations selftest``: four checks of the package on the user's own machine.

Quantization keeps the vectors, batches give the same vectors as single texts, the cache answers
what it should and nothing else, and memory does not grow. Speeds are printed, never judged.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from . import _core
from .cache import SmartCache
from .embedding import BatchEmbeddingProcessor, EmbeddingModel
from .embedding.lookup import DEFAULT_MODEL
from .quantization import ModelQuantizer
from .report import chat_messages

_LEAST_COSINE = 0.9999
_MOST_GROWTH_MB = 16.0
#: A stored question, one with the same meaning, and one that looks similar but means another thing.
_QUESTIONS = (
    ("How do I open an account?", "How can I open an account?", "How do I close an account?"),
    ("Can I withdraw 200 euros?", "May I withdraw 200 euros?", "Can I withdraw 500 euros?"),
    ("Is the shop open on Monday?", "is the shop open on monday?", "Is the shop open on Sunday?"),
)


@dataclass(frozen=True)
class Check:
    """One check: whether it passed, and its measurements."""

    name: str
    passed: bool
    figures: dict[str, float]


def check_quantization(full: EmbeddingModel, texts: list[str]) -> Check:
    """Check that half the memory gives nearly the same vectors."""
    small = ModelQuantizer().quantize_model(full)
    a, b = full.encode(texts), small.encode(texts)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = float(np.min(np.sum(a * b, axis=1) / norms))
    share = small.memory_bytes / full.memory_bytes
    return Check(
        "quantization",
        cosine >= _LEAST_COSINE and share <= 0.51,
        {
            "least cosine": cosine,
            "memory before, MB": full.memory_bytes / 1e6,
            "memory after, MB": small.memory_bytes / 1e6,
        },
    )


def check_batches(model: EmbeddingModel, texts: list[str]) -> Check:
    """Check that many callers at once get, bit for bit, the vectors of single calls."""
    began = time.perf_counter()
    single = np.stack([model.encode(text) for text in texts])
    alone = time.perf_counter() - began

    async def together() -> tuple[Any, float]:
        async with BatchEmbeddingProcessor(model=model, cache_mb=0) as processor:
            await processor.warmup()
            start = time.perf_counter()
            rows = await asyncio.gather(*(processor.embed(text) for text in texts))
            return np.stack(rows), time.perf_counter() - start

    rows, seconds = asyncio.run(together())
    return Check(
        "batches",
        bool(np.array_equal(rows, single)),
        {
            "one by one, texts/s": len(texts) / alone,
            "merged, texts/s": len(texts) / seconds,
        },
    )


def check_cache(model: EmbeddingModel) -> Check:
    """Check that a question and its paraphrase hit, and its opposite and another context do not."""
    cache = SmartCache(embedder=model)
    right = wrong = 0
    seconds = []
    for stored, same, other in _QUESTIONS:
        cache.put(stored, stored)
        for query in (stored, same):
            vector = model.encode(query)
            start = time.perf_counter()
            hit = cache.get_semantic_similar(vector, query=query)
            seconds.append(time.perf_counter() - start)
            right += hit is not None and hit.value == stored
        wrong += cache.get(other) is not None
        wrong += cache.get(stored, context="another user") is not None
    return Check(
        "cache",
        right == 2 * len(_QUESTIONS) and wrong == 0,
        {
            "hits of 6": right,
            "wrong hits of 6": wrong,
            "lookup, us": float(np.median(seconds)) * 1e6,
        },
    )


def check_memory(model: EmbeddingModel, texts: list[str]) -> Check:
    """Check that batches of changing size do not grow the resident set."""
    import psutil

    process = psutil.Process()
    for size in (1, 7, 32, len(texts)):
        model.encode(texts[:size])
    gc.collect()
    before = process.memory_info().rss
    for size in (3, 17, 32, 5, len(texts), 9) * 2:
        model.encode(texts[:size])
    gc.collect()
    grown = (process.memory_info().rss - before) / 1e6
    return Check(
        "memory",
        grown < _MOST_GROWTH_MB,
        {
            "growth over 12 batches, MB": grown,
            "held by the core, MB": _core.memory_info()["live_bytes"] / 1e6,
        },
    )


def run_checks(model: str = DEFAULT_MODEL, count: int = 48) -> list[Check]:
    """Run all four on a model, with `count` of the report's messages."""
    full = EmbeddingModel.load(model, dtype="f32")
    texts = list(dict.fromkeys(chat_messages(4 * count)))[:count]
    quantization = check_quantization(full, texts)
    small = ModelQuantizer().quantize_model(full)
    del full
    checks: tuple[Callable[[], Check], ...] = (
        lambda: check_batches(small, texts),
        lambda: check_cache(small),
        lambda: check_memory(small, texts),
    )
    return [quantization, *(check() for check in checks)]


def add_command(commands: Any) -> None:
    """Register ``selftest`` with argparse."""
    parser = commands.add_parser("selftest", help="check the package on this machine")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a folder or a name")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Check, print, and return 1 when a check failed."""
    found = run_checks(options.model)
    if options.json:
        print(json.dumps([asdict(check) for check in found], indent=1))
    else:
        for check in found:
            figures = "; ".join(f"{name} {value:.5g}" for name, value in check.figures.items())
            print(f"{check.name:14}{'passed' if check.passed else 'FAILED':8}{figures}")
    return 0 if all(check.passed for check in found) else 1
