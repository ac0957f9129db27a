"""Full queues, cancelled callers and closed processors: no caller waits for ever."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
import threading
from typing import Any

import numpy as np
import pytest
from batching_helpers import expected, no_thread, run, until

from ai_model_optimizations import BatchEmbeddingProcessor, ClosedError, QueueFull
from ai_model_optimizations.testing import FakeEmbedder

# ---- limits and cancellation ----


def test_a_full_queue_refuses_and_recovers() -> None:
    model = FakeEmbedder()
    model.gate.clear()

    async def main() -> None:
        async with BatchEmbeddingProcessor(batch_size=4, model=model, max_queue=10) as processor:
            blocker = asyncio.ensure_future(processor.embed("blocker"))
            await until(lambda: len(model.batches) == 1)
            waiting = asyncio.ensure_future(processor.process_batch([f"{i}" for i in range(10)]))
            await until(lambda: processor.metrics()["queue_texts"] == 10)
            with pytest.raises(QueueFull, match="max_queue=10"):
                await processor.embed("one more")
            joined = asyncio.ensure_future(processor.embed("3"))  # needs no room
            await asyncio.sleep(0)
            assert processor.metrics()["failures"]["overloaded"] == 1
            model.gate.set()
            await asyncio.gather(blocker, waiting, joined)
            assert (await processor.embed("one more")).shape == (8,)

    run(main())


def test_a_call_larger_than_the_queue_is_fed_piece_by_piece() -> None:
    model = FakeEmbedder()
    texts = [f"text {i}" for i in range(5000)]
    seen: list[tuple[int, int]] = []

    async def main() -> None:
        async with BatchEmbeddingProcessor(model=model, max_queue=100, cache_mb=0) as processor:
            vectors = await processor.process_batch(texts, progress=lambda *at: seen.append(at))
            assert np.array_equal(vectors, expected(model, texts))

    run(main())
    assert seen[-1] == (5000, 5000)
    assert seen == sorted(seen)


def test_a_cancelled_caller_costs_nothing() -> None:
    model = FakeEmbedder()
    model.gate.clear()

    async def main() -> None:
        async with BatchEmbeddingProcessor(model=model) as processor:
            blocker = asyncio.ensure_future(processor.embed("blocker"))
            await until(lambda: len(model.batches) == 1)
            calls = [asyncio.ensure_future(processor.embed(f"{i}")) for i in range(100)]
            large = asyncio.ensure_future(processor.process_batch([f"l {i}" for i in range(2000)]))
            await until(lambda: processor.metrics()["queue_texts"] == 612)
            for call in [*calls[::2], large]:
                call.cancel()
            await asyncio.sleep(0)
            await until(lambda: processor.metrics()["queue_texts"] == 50)
            model.gate.set()
            await asyncio.gather(blocker, *calls[1::2])
            assert processor.metrics()["failures"]["cancelled"] == 52  # large was in two windows
            assert processor.metrics()["queue_tokens"] == 0

    run(main())
    computed = {text for batch in model.batches for text in batch}
    assert computed == {"blocker", *(f"{i}" for i in range(1, 100, 2))}


def test_a_shared_text_survives_the_cancellation_of_one_of_its_callers() -> None:
    model = FakeEmbedder()
    model.gate.clear()

    async def main() -> None:
        async with BatchEmbeddingProcessor(model=model) as processor:
            blocker = asyncio.ensure_future(processor.embed("blocker"))
            await until(lambda: len(model.batches) == 1)
            first = asyncio.ensure_future(processor.embed("shared"))
            second = asyncio.ensure_future(processor.embed("shared"))
            await asyncio.sleep(0)
            first.cancel()
            await asyncio.sleep(0)
            model.gate.set()
            assert np.array_equal(await second, model.vector("shared"))
            await blocker
            assert first.cancelled()

    run(main())


# ---- ends ----


def test_close_answers_what_waits_and_then_refuses() -> None:
    model = FakeEmbedder(delay=0.01)

    async def main() -> None:
        processor = BatchEmbeddingProcessor(batch_size=4, model=model)
        calls = [asyncio.ensure_future(processor.embed(f"{i}")) for i in range(40)]
        await asyncio.sleep(0)
        await processor.aclose()
        assert np.array_equal(
            np.stack(await asyncio.gather(*calls)), expected(model, [f"{i}" for i in range(40)])
        )
        with pytest.raises(ClosedError):
            await processor.embed("late")
        with pytest.raises(ClosedError):
            processor.embed_sync("0")  # a cached one, too
        await processor.aclose()

    run(main())
    for thread in threading.enumerate():
        if thread.name == "aimo-batch-close":
            thread.join(10)  # it has told the loop that it is done, and may still be about to end
    assert not [t for t in threading.enumerate() if t.name.startswith("aimo-batch")]


def test_close_without_drain_fails_what_waits() -> None:
    model = FakeEmbedder()
    model.gate.clear()

    async def main() -> None:
        processor = BatchEmbeddingProcessor(model=model)
        calls = [asyncio.ensure_future(processor.embed(f"{i}")) for i in range(40)]
        await until(lambda: len(model.batches) == 1)
        await processor.aclose(drain=False, timeout=0.1)
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(answer, ClosedError) for answer in answers)
        model.gate.set()

    run(main())


def test_a_loop_that_closes_early_does_not_stop_the_others() -> None:
    model = FakeEmbedder()
    model.gate.clear()
    processor = BatchEmbeddingProcessor(model=model)
    loop = asyncio.new_event_loop()
    task = loop.create_task(processor.embed("never collected"))
    loop.run_until_complete(asyncio.sleep(0.05))
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()  # the task is still pending
    model.gate.set()
    assert np.array_equal(processor.embed_sync("other"), model.vector("other"))
    assert processor.metrics()["undelivered"] == 1
    processor.close()
    task.get_coro().close()  # type: ignore[union-attr]


def test_a_task_that_ends_the_loop_leaves_no_other_caller_without_an_answer() -> None:
    model = FakeEmbedder()
    loop = asyncio.new_event_loop()
    model.gate.clear()

    async def leave() -> None:
        await processor.embed("first")
        raise SystemExit(3)

    async def stay() -> Any:
        return await processor.embed("second")

    with BatchEmbeddingProcessor(model=model) as processor:
        try:
            tasks = [loop.create_task(stay()), loop.create_task(leave()), loop.create_task(stay())]
            loop.call_later(0.05, model.gate.set)
            with pytest.raises(SystemExit):
                loop.run_until_complete(asyncio.gather(*tasks))
            for task in (tasks[0], tasks[2]):
                vector = loop.run_until_complete(asyncio.wait_for(task, 10))
                assert np.array_equal(vector, model.vector("second"))
        finally:
            loop.close()


@pytest.mark.parametrize("debug", [False, True])
def test_a_caller_goes_on_as_its_own_task_in_its_own_context(debug: bool) -> None:
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name")
    seen = []

    async def caller(text: str, processor: BatchEmbeddingProcessor) -> None:
        name.set(text)
        for turn in range(3):
            await processor.embed(f"{text} {turn}")
            seen.append((name.get(), asyncio.current_task().get_name()))  # type: ignore[union-attr]

    async def main() -> None:
        async with BatchEmbeddingProcessor(model=FakeEmbedder(delay=0.001)) as processor:
            tasks = [
                asyncio.create_task(caller(text, processor), name=text) for text in "abcdefgh"
            ]
            await asyncio.gather(*tasks)

    asyncio.run(main(), debug=debug)
    assert sorted(seen) == sorted((text, text) for text in "abcdefgh" for _ in range(3))


def test_a_dropped_processor_ends_its_threads() -> None:
    def names() -> list[str]:
        return [t.name for t in threading.enumerate() if t.name.startswith("aimo-batch")]

    async def main() -> None:
        processor = BatchEmbeddingProcessor(model=FakeEmbedder())
        await processor.embed("a")
        assert names()
        del processor
        await until(lambda: not names())

    run(main())


def test_a_processor_dropped_where_no_thread_can_start_raises_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    processor = BatchEmbeddingProcessor(model=FakeEmbedder())
    processor.embed_sync("a")
    dispatcher = processor._dispatcher
    unraisable: list[object] = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        patch.setattr(sys, "unraisablehook", unraisable.append)
        del processor
        gc.collect()
    assert not unraisable
    dispatcher.close(drain=False, timeout=10)
