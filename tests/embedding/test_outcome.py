"""A future that resumes its waiter at once: what asyncio's own tools may expect of it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Any

import numpy as np
import pytest
from batching_helpers import run, until

from ai_model_optimizations import BatchEmbeddingProcessor
from ai_model_optimizations.embedding.outcome import LoopOutcome
from ai_model_optimizations.testing import FakeEmbedder

VECTOR = np.ones(3, np.float32)


def test_the_last_waiter_is_called_at_once_and_the_others_by_the_loop() -> None:
    seen: list[str] = []

    async def main() -> None:
        outcome = LoopOutcome(loop=asyncio.get_running_loop())
        for name in "abc":
            outcome.add_done_callback(lambda future, name=name: seen.append(name))
        outcome.settle(VECTOR)
        assert seen == ["c"]
        await asyncio.sleep(0)
        assert seen == ["c", "a", "b"]
        assert await outcome is VECTOR

    run(main())


def test_who_no_longer_waits_is_not_called() -> None:
    seen: list[str] = []

    def removed(future: Any) -> None:
        seen.append("removed")

    async def main() -> None:
        outcome = LoopOutcome(loop=asyncio.get_running_loop())
        outcome.add_done_callback(lambda future: seen.append("stays"))
        outcome.add_done_callback(removed)
        outcome.remove_done_callback(removed)
        outcome.settle(VECTOR)
        await asyncio.sleep(0)
        assert seen == ["stays"]

    run(main())


def test_a_waiter_that_cancels_others_of_its_wake_up_ends_them() -> None:
    model = FakeEmbedder()
    model.gate.clear()

    async def main() -> None:
        async with BatchEmbeddingProcessor(model=model) as processor:
            others: list[asyncio.Future[Any]] = []

            async def first() -> None:
                await processor.embed("first")
                for other in others:
                    other.cancel()
                assert np.array_equal(await processor.embed("next"), model.vector("next"))

            blocker = asyncio.ensure_future(processor.embed("blocker"))
            await until(lambda: len(model.batches) == 1)
            task = asyncio.ensure_future(first())
            await asyncio.sleep(0)
            others += [asyncio.ensure_future(processor.embed(f"{i}")) for i in range(5)]
            await until(lambda: processor.metrics()["queue_texts"] == 6)
            model.gate.set()
            await asyncio.gather(blocker, task)
            answers = await asyncio.gather(*others, return_exceptions=True)
            assert all(isinstance(answer, asyncio.CancelledError) for answer in answers)

    run(main())


def test_time_limits_and_shields_around_a_call_lose_no_vector() -> None:
    model = FakeEmbedder(delay=0.002)

    async def main() -> None:
        async with BatchEmbeddingProcessor(model=model) as processor:
            for i in range(60):
                inner = asyncio.ensure_future(processor.embed(f"{i}"))
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(asyncio.shield(inner), 0.0005 * (i % 10))
                assert np.array_equal(await inner, model.vector(f"{i}"))
            done, _ = await asyncio.wait(
                [asyncio.ensure_future(processor.embed(f"w{i}")) for i in range(9)]
            )
            assert len(done) == 9
            metrics = processor.metrics()
            assert metrics["requests"] == metrics["successes"] == 69

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
def test_tasks_that_start_at_once_may_do_so_inside_a_wake_up() -> None:
    model = FakeEmbedder(delay=0.001)

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
        async with BatchEmbeddingProcessor(model=model) as processor:

            async def caller(i: int) -> None:
                me = asyncio.current_task()
                await processor.embed(f"{i}")
                assert asyncio.current_task() is me
                inner = asyncio.create_task(processor.embed(f"inner {i}"))
                cached = asyncio.create_task(processor.embed(f"{i}"))
                assert asyncio.current_task() is me
                assert np.array_equal(await inner, model.vector(f"inner {i}"))
                assert np.array_equal(await cached, model.vector(f"{i}"))

            await asyncio.gather(*(caller(i) for i in range(40)))

    run(main())
