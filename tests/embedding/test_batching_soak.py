"""Full load with cancellations, failures and slow callers: nothing lost, nothing twice, RSS flat.

Ten seconds always, a minute in CI; ten minutes with --soak.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
import time
from collections import Counter

import numpy as np
import psutil
import pytest

from ai_model_optimizations import BatchEmbeddingProcessor, QueueFull
from ai_model_optimizations.testing import FakeEmbedder

USUAL_SECONDS = 60.0 if os.environ.get("CI") == "true" else 10.0
CALLERS = 48
TEXTS = 4000  # distinct ones, so that callers often want the same
POISON = {f"text {i}" for i in range(0, TEXTS, 211)}
NOT_A_NUMBER = {f"text {i}" for i in range(5, TEXTS, 307)}


class LeakFree(FakeEmbedder):
    """A FakeEmbedder that keeps no list of its batches and remembers its vectors."""

    def __init__(self) -> None:
        super().__init__(32, delay=0.0005, fail_on=POISON, nan_on=NOT_A_NUMBER)
        self._known: dict[str, np.ndarray] = {}
        for i in range(TEXTS):
            self.vector(f"text {i}")
            self.vector(f"plain {i}")

    def encode(self, texts, batch_size=32):  # type: ignore[no-untyped-def]
        vectors = super().encode(texts, batch_size)
        self.batches.clear()
        return vectors

    def vector(self, text: str) -> np.ndarray:
        if text not in self._known:
            self._known[text] = super().vector(text)
        return self._known[text]


async def caller(
    processor: BatchEmbeddingProcessor,
    model: FakeEmbedder,
    seed: int,
    until: float,
    outcomes: Counter[str],
) -> None:
    """Call in random ways; every call must end, and every vector must be its text's."""
    dice = random.Random(seed)
    while time.monotonic() < until:
        texts = [f"text {dice.randrange(TEXTS)}" for _ in range(dice.choice((1, 1, 1, 3, 40, 700)))]
        priority = dice.choice(("high", "normal", "low"))
        call = asyncio.ensure_future(processor.process_batch(texts, priority=priority))
        outcomes["begun"] += 1
        if dice.random() < 0.2:
            await asyncio.sleep(dice.random() * 0.01)
            call.cancel()
        try:
            vectors = await call
        except asyncio.CancelledError:
            outcomes["cancelled"] += 1
        except QueueFull:
            outcomes["refused"] += 1
            await asyncio.sleep(0.01)
        except RuntimeError:
            assert POISON.intersection(texts)
            outcomes["failed"] += 1
        except ValueError:
            assert NOT_A_NUMBER.intersection(texts)
            outcomes["failed"] += 1
        else:
            assert not POISON.intersection(texts)
            assert not NOT_A_NUMBER.intersection(texts)
            assert np.array_equal(vectors, np.stack([model.vector(text) for text in texts]))
            outcomes["answered"] += 1
        if dice.random() < 0.1:
            await asyncio.sleep(dice.random() * 0.05)  # a slow caller


def plain_thread(
    processor: BatchEmbeddingProcessor,
    model: FakeEmbedder,
    until: float,
    outcomes: Counter[str],
    errors: list[BaseException],
) -> None:
    dice = random.Random(99)
    try:
        while time.monotonic() < until:
            text = f"plain {dice.randrange(TEXTS)}"
            assert np.array_equal(processor.embed_sync(text), model.vector(text))
            outcomes["plain"] += 1
    except QueueFull:
        outcomes["refused"] += 1
    except BaseException as error:
        errors.append(error)


def soak(seconds: float) -> None:
    model = LeakFree()
    process = psutil.Process()
    outcomes: Counter[str] = Counter()
    errors: list[BaseException] = []
    resident: list[int] = []
    until = time.monotonic() + seconds

    async def main() -> None:
        loop = asyncio.get_running_loop()
        unhandled: list[object] = []
        loop.set_exception_handler(lambda _, context: unhandled.append(context))
        async with BatchEmbeddingProcessor(
            model=model, workers=2, max_queue=20_000, cache_mb=0.25
        ) as processor:
            thread = threading.Thread(
                target=plain_thread, args=(processor, model, until, Counter(), errors)
            )
            thread.start()

            async def watch() -> None:
                while time.monotonic() < until:
                    await asyncio.sleep(seconds / 40)
                    gc.collect()
                    resident.append(process.memory_info().rss)

            await asyncio.gather(
                watch(), *(caller(processor, model, i, until, outcomes) for i in range(CALLERS))
            )
            thread.join()
            metrics = processor.metrics()
            assert metrics["queue_texts"] == metrics["queue_tokens"] == 0
            assert metrics["undelivered"] == 0
        assert metrics["running_texts"] == 0 or processor.metrics()["running_texts"] == 0
        assert not unhandled

    asyncio.run(asyncio.wait_for(main(), seconds + 60))
    assert not errors
    begun = outcomes.pop("begun")
    assert sum(outcomes.values()) == begun  # every call ended, each in one way
    assert min(outcomes[kind] for kind in ("answered", "cancelled", "failed")) > 20
    settled = resident[len(resident) // 4 :]
    half = len(settled) // 2
    growth = np.median(settled[half:]) - np.median(settled[:half])
    assert growth < 8 * 2**20, f"{growth / 2**20:.1f} MiB over the second half"
    print(dict(outcomes), f"RSS {growth / 2**20:+.2f} MiB")


@pytest.mark.parametrize("seconds", [USUAL_SECONDS, pytest.param(600.0, marks=pytest.mark.soak)])
def test_full_load_loses_nothing_and_keeps_memory_flat(seconds: float) -> None:
    soak(seconds)
