"""What callers of BatchEmbeddingProcessor can rely on, with a stand-in for the model."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import gc
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from ai_model_optimizations import BatchEmbeddingProcessor, ClosedError, QueueFull
from ai_model_optimizations.embedding.metrics import BatchMetrics
from ai_model_optimizations.testing import FakeEmbedder


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 60))


def expected(model: FakeEmbedder, texts: list[str]) -> np.ndarray:
    return np.stack([model.vector(text) for text in texts])


def no_thread(thread: threading.Thread) -> None:
    """In place of ``threading.Thread.start``: a process that has no more of them."""
    raise RuntimeError("can't start new thread")


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("the condition never became true")


# ---- order, shapes, merging ----


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 255, 256, 257, 1000, 3001])
def test_vectors_come_in_input_order_whatever_the_number_of_texts(count: int) -> None:
    model = FakeEmbedder()
    texts = [f"text number {i % 700} {'x' * (i * 7919 % 50)}" for i in range(count)]

    async def main() -> None:
        async with BatchEmbeddingProcessor(model=model) as processor:
            vectors = await processor.process_batch(texts)
        assert vectors.dtype == np.float32
        assert np.array_equal(vectors, expected(model, texts))

    run(main())
    assert max(map(len, model.batches)) <= 32


def test_concurrent_single_texts_share_batches_and_get_their_own_vectors() -> None:
    model = FakeEmbedder(delay=0.002)

    async def main() -> None:
        async with BatchEmbeddingProcessor(model=model, cache_mb=0) as processor:

            async def caller(name: int) -> None:
                for turn in range(20):
                    text = f"caller {name}, turn {turn}"
                    assert np.array_equal(await processor.embed(text), model.vector(text))

            await asyncio.gather(*(caller(i) for i in range(64)))

    run(main())
    assert sum(map(len, model.batches)) == 64 * 20
    assert len(model.batches) < 64 * 20 / 8


def test_several_loops_and_plain_threads_share_one_processor() -> None:
    model = FakeEmbedder(delay=0.001)
    with BatchEmbeddingProcessor(model=model, workers=2) as processor:

        def in_a_loop(name: int) -> None:
            async def main() -> None:
                texts = [f"loop {name} text {i}" for i in range(100)]
                vectors = await asyncio.gather(*map(processor.embed, texts))
                assert np.array_equal(np.stack(vectors), expected(model, texts))

            run(main())

        def in_a_thread(name: int) -> None:
            texts = [f"thread {name} text {i}" for i in range(400)]
            assert np.array_equal(processor.process_batch_sync(texts), expected(model, texts))
            assert np.array_equal(processor.embed_sync(texts[3]), model.vector(texts[3]))

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            jobs = [pool.submit(in_a_loop, i) for i in range(4)]
            jobs += [pool.submit(in_a_thread, i) for i in range(4)]
            for job in jobs:
                job.result(60)


def test_the_sync_call_works_inside_a_running_loop() -> None:
    model = FakeEmbedder()

    async def main() -> None:
        with BatchEmbeddingProcessor(model=model) as processor:
            assert np.array_equal(processor.process_batch_sync(["a"]), expected(model, ["a"]))

    run(main())


def test_no_texts_give_an_empty_matrix_of_the_models_dimension() -> None:
    class Undimensioned:
        def encode(self, texts: list[str]) -> list[list[float]]:
            return [[1.0, 2.0, 3.0] for _ in texts]

    async def main() -> None:
        async with BatchEmbeddingProcessor(model=FakeEmbedder(5)) as processor:
            assert (await processor.process_batch([])).shape == (0, 5)
        async with BatchEmbeddingProcessor(model=Undimensioned()) as processor:
            assert (await processor.process_batch([])).shape == (0, 3)
            assert processor.process_batch_sync([]).shape == (0, 3)

    run(main())


def test_batches_respect_the_token_budget_but_a_longer_text_runs_alone() -> None:
    model = FakeEmbedder(max_seq_length=100_000)
    texts = ["word " * n for n in (2000, 10, 10, 400, 400, 400)]
    with BatchEmbeddingProcessor(model=model, max_tokens=900) as processor:
        assert np.array_equal(processor.process_batch_sync(texts), expected(model, texts))
    for batch in model.batches:
        assert len(batch) == 1 or sum(len(text) // 4 for text in batch) <= 900


# ---- one computation for equal texts, the exact cache ----


def test_equal_texts_in_flight_are_computed_once() -> None:
    model = FakeEmbedder()
    model.gate.clear()

    async def main() -> None:
        async with BatchEmbeddingProcessor(model=model, cache_mb=0) as processor:
            calls = [asyncio.ensure_future(processor.embed("same")) for _ in range(50)]
            calls.append(asyncio.ensure_future(processor.process_batch(["same", "other", "same"])))
            await until(lambda: len(model.batches) == 1)
            calls.append(asyncio.ensure_future(processor.embed("same")))  # joins a running batch
            await asyncio.sleep(0)
            model.gate.set()
            answers = await asyncio.gather(*calls)
            for answer in answers[:50] + answers[51:]:
                assert np.array_equal(answer, model.vector("same"))
            assert np.array_equal(answers[50], expected(model, ["same", "other", "same"]))
            assert processor.metrics()["deduplicated_texts"] == 52

    run(main())
    assert sorted(text for batch in model.batches for text in batch) == ["other", "same"]


def test_an_answer_belongs_to_its_caller_alone() -> None:
    model = FakeEmbedder()

    async def main() -> None:
        async with BatchEmbeddingProcessor(model=model) as processor:
            first, second = await asyncio.gather(processor.embed("a"), processor.embed("a"))
            first[:] = 7
            assert np.array_equal(second, model.vector("a"))
            second[:] = 8
            assert np.array_equal(await processor.embed("a"), model.vector("a"))

    run(main())


def test_the_cache_answers_exact_texts_only_and_stays_within_its_bytes() -> None:
    model = FakeEmbedder(100)
    with BatchEmbeddingProcessor(model=model, cache_mb=0.1) as processor:
        processor.process_batch_sync(["cached", "Cached", "cached "])
        processor.process_batch_sync(["cached", "Cached", "cached "])
        assert len(model.batches) == 1
        assert processor.metrics()["cache"]["hits"] == 3
        processor.process_batch_sync([f"text {i}" for i in range(1000)])
        cache = processor.metrics()["cache"]
        assert 0 < cache["bytes"] <= cache["max_bytes"] == int(0.1 * 2**20)
        before = len(model.batches)
        processor.embed_sync("cached")  # least recently used, so gone
        assert len(model.batches) == before + 1
        processor.clear_cache()
        assert processor.metrics()["cache"]["entries"] == 0


# ---- priorities ----


def test_priorities_share_and_nothing_starves() -> None:
    model = FakeEmbedder()
    model.gate.clear()

    async def main() -> None:
        async with BatchEmbeddingProcessor(batch_size=1, model=model, cache_mb=0) as processor:
            blocker = asyncio.ensure_future(processor.embed("blocker"))
            await until(lambda: len(model.batches) == 1)
            calls = [
                asyncio.ensure_future(processor.embed(f"{priority[0]} {i:03}", priority=priority))
                for priority in ("low", "normal", "high")
                for i in range(200)
            ]
            await until(lambda: processor.metrics()["queue_texts"] == 600)
            model.gate.set()
            await asyncio.gather(blocker, *calls)

    run(main())
    order = [batch[0].split()[0] for batch in model.batches[1:]]
    first = order[:210]
    assert first.count("h") == pytest.approx(160, abs=8)
    assert first.count("n") == pytest.approx(40, abs=4)
    assert first.count("l") == pytest.approx(10, abs=2)
    texts = [batch[0] for batch in model.batches[1:]]
    for priority in "lnh":
        mine = [text for text in texts if text.startswith(priority)]
        assert mine == sorted(mine)


def test_an_urgent_caller_pulls_an_equal_text_forward() -> None:
    model = FakeEmbedder()
    model.gate.clear()

    async def main() -> None:
        async with BatchEmbeddingProcessor(batch_size=1, model=model) as processor:
            blocker = asyncio.ensure_future(processor.embed("blocker"))
            await until(lambda: len(model.batches) == 1)
            low = [asyncio.ensure_future(processor.embed(f"{i}", priority="low")) for i in range(9)]
            await until(lambda: processor.metrics()["queue_texts"] == 9)
            high = asyncio.ensure_future(processor.embed("8", priority="high"))
            await asyncio.sleep(0)
            model.gate.set()
            await asyncio.gather(blocker, high, *low)

    run(main())
    assert [batch[0] for batch in model.batches][:2] == ["blocker", "8"]


# ---- bad input ----


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("one string", r"texts: .* got str; use embed\(\)"),
        (b"bytes", "texts: .* got bytes"),
        (7, "texts: .* got int"),
        (None, "texts: .* got NoneType"),
        ({"a", "b"}, "texts: .* got set"),
        (["fine", None], r"texts\[1\]: expected str, got NoneType"),
        (["fine"] * 70_000 + [3], r"texts\[70000\]: expected str, got int"),
    ],
)
def test_texts_that_are_none_are_refused_before_any_work(texts: Any, message: str) -> None:
    model = FakeEmbedder()

    async def main() -> None:
        async with BatchEmbeddingProcessor(model=model) as processor:
            with pytest.raises(TypeError, match=message):
                await processor.process_batch(texts)
            with pytest.raises(TypeError, match=message):
                processor.process_batch_sync(texts)
            assert processor.metrics()["failures"]["validation"] == 2

    run(main())
    assert model.batches == []


def test_embed_refuses_what_is_no_string_and_unknown_priorities() -> None:
    async def main() -> None:
        async with BatchEmbeddingProcessor(model=FakeEmbedder()) as processor:
            with pytest.raises(TypeError, match="text: expected str, got list"):
                await processor.embed(["a"])  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="priority: expected one of high, normal, low"):
                await processor.embed("a", priority="urgent")  # type: ignore[arg-type]

    run(main())


@pytest.mark.parametrize(
    "text", ["", " ", "\0", "nul \0 inside", "\ud800", "İstanbul'da ığdır", "漢字", "a" * 10**6]
)
def test_unusual_texts_are_texts(text: str) -> None:
    model = FakeEmbedder()
    with BatchEmbeddingProcessor(model=model) as processor:
        assert np.array_equal(processor.embed_sync(text), model.vector(text))


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"batch_size": 2.5}, TypeError, "batch_size"),
        ({"batch_size": True}, TypeError, "batch_size"),
        ({"max_wait_time": -1}, ValueError, "max_wait_time"),
        ({"max_wait_time": float("nan")}, ValueError, "max_wait_time"),
        ({"max_tokens": 0}, ValueError, "max_tokens"),
        ({"max_queue": -3}, ValueError, "max_queue"),
        ({"timeout": 0}, ValueError, "timeout"),
        ({"timeout": "1"}, TypeError, "timeout"),
        ({"workers": 0}, ValueError, "workers"),
        ({"cache_mb": -1}, ValueError, "cache_mb"),
        ({"model": 3}, TypeError, "model"),
    ],
)
def test_arguments_out_of_range_are_named(
    arguments: dict[str, Any], error: type[Exception], name: str
) -> None:
    with pytest.raises(error, match=f"^{name}: "):
        BatchEmbeddingProcessor(**arguments)


# ---- models that misbehave ----


def test_one_bad_text_fails_its_caller_alone() -> None:
    model = FakeEmbedder(fail_on={"bad"}, nan_on={"nan"}, error=lambda: KeyError("cannot"))
    model.gate.clear()

    async def main() -> None:
        async with BatchEmbeddingProcessor(model=model) as processor:
            texts = [f"good {i}" for i in range(40)] + ["bad", "nan"]
            calls = [asyncio.ensure_future(processor.embed(text)) for text in texts]
            both = asyncio.ensure_future(processor.process_batch(["good 1", "bad"]))
            await until(lambda: len(model.batches) == 1)
            model.gate.set()
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert np.array_equal(np.stack(answers[:40]), expected(model, texts[:40]))
            assert isinstance(answers[40], KeyError)
            assert isinstance(answers[41], ValueError)
            with pytest.raises(KeyError, match="cannot"):
                await both
            assert processor.metrics()["failures"]["inference"] == 3
            model.fail_on.clear()
            model.nan_on.clear()  # a failure is never cached
            assert np.array_equal(await processor.embed("bad"), model.vector("bad"))
            assert np.array_equal(await processor.embed("nan"), model.vector("nan"))

    run(main())


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, StopIteration, GeneratorExit])
def test_an_exception_that_would_end_a_loop_arrives_as_runtime_error(
    error: type[BaseException],
) -> None:
    model = FakeEmbedder(fail_on={"bad"}, error=error)

    async def main() -> None:
        async with BatchEmbeddingProcessor(model=model) as processor:
            with pytest.raises(RuntimeError, match=error.__name__):
                await processor.embed("bad")
            assert (await processor.embed("good")).shape == (8,)

    run(main())


def test_an_exception_that_cannot_be_copied_still_arrives() -> None:
    class AwkwardError(Exception):
        def __init__(self, one: int, two: int) -> None:
            super().__init__("awkward")

    model = FakeEmbedder(fail_on={"bad"}, error=lambda: AwkwardError(1, 2))
    with BatchEmbeddingProcessor(model=model) as processor, pytest.raises(AwkwardError):
        processor.embed_sync("bad")


@pytest.mark.parametrize(
    "answer",
    [np.zeros(8), np.zeros((3, 8)), np.zeros((2, 0)), np.zeros((2, 2, 2)), 7.0],
    ids=["flat", "too many", "no dimension", "cube", "number"],
)
def test_a_wrong_shape_is_an_error_that_names_it(answer: Any) -> None:
    class Wrong:
        calls = 0

        def encode(self, texts: list[str]) -> Any:
            self.calls += 1
            return answer

    model = Wrong()
    with BatchEmbeddingProcessor(model=model) as processor:
        with pytest.raises(ValueError, match="returned shape"):
            processor.process_batch_sync(["a", "b"])
        assert model.calls == 1  # smaller batches would not help


def test_vectors_whose_dimension_changes_are_refused() -> None:
    class Changing:
        dimension = 4

        def encode(self, texts: list[str]) -> np.ndarray:
            return np.zeros((len(texts), self.dimension))

    model = Changing()
    with BatchEmbeddingProcessor(model=model) as processor:
        processor.embed_sync("a")
        model.dimension = 5
        with pytest.raises(ValueError, match="dimension 5; it has dimension 4"):
            processor.embed_sync("b")


def test_rows_that_are_no_numbers_are_the_models_error() -> None:
    class Ragged:
        def encode(self, texts: list[str]) -> Any:
            return [[1.0], [1.0, 2.0]]

    with BatchEmbeddingProcessor(model=Ragged()) as processor, pytest.raises(ValueError):
        processor.process_batch_sync(["a", "b"])


def test_a_coroutine_encode_is_refused() -> None:
    class Async:
        async def encode(self, texts: list[str]) -> Any:
            return []

    processor = BatchEmbeddingProcessor(model=Async())
    with processor, pytest.raises(TypeError, match="coroutine"):
        processor.embed_sync("a")


# ---- the model's loading ----


def test_the_model_is_loaded_once_in_a_worker_thread_and_by_the_first_text() -> None:
    loads: list[str] = []
    model = FakeEmbedder()

    def load() -> FakeEmbedder:
        loads.append(threading.current_thread().name)
        return model

    async def main() -> None:
        async with BatchEmbeddingProcessor(model=load, workers=3) as processor:
            assert loads == []
            assert not processor.ready()
            assert processor.dimension is None and processor.space_id is None
            await asyncio.gather(*(processor.embed(f"{i}") for i in range(500)))
            assert processor.ready()
            assert processor.dimension == 8 and processor.space_id == "fake"
        assert not processor.ready()

    run(main())
    assert len(loads) == 1
    assert loads[0].startswith("aimo-batch")


def test_a_failed_load_fails_its_callers_and_is_tried_again() -> None:
    attempts = 0

    def load() -> FakeEmbedder:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise OSError("the file is not there yet")
        return FakeEmbedder()

    async def main() -> None:
        async with BatchEmbeddingProcessor(model=load) as processor:
            with pytest.raises(OSError, match="not there yet"):
                await processor.process_batch(["a", "b"])
            assert (await processor.embed("a")).shape == (8,)

    run(main())
    assert attempts == 2


def test_warmup_loads_the_model_and_runs_a_full_batch() -> None:
    model = FakeEmbedder()

    async def main() -> None:
        async with BatchEmbeddingProcessor(batch_size=16, model=lambda: model) as processor:
            await processor.warmup()
            assert processor.ready()

    run(main())
    assert sum(map(len, model.batches)) == 16
    with BatchEmbeddingProcessor(model=lambda: model) as processor:
        processor.warmup_sync()
        assert processor.ready()


# ---- limits, cancellation, time ----


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


def test_a_model_that_hangs_costs_its_callers_a_timeout_and_the_queue_goes_on() -> None:
    model = FakeEmbedder()
    model.gate.clear()

    async def main() -> None:
        processor = BatchEmbeddingProcessor(model=model, timeout=1.5)
        calls = [processor.embed("hangs"), processor.process_batch(["a", "b"])]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(answer, TimeoutError) for answer in answers)
        hung = model.gate
        model.gate = threading.Event()  # the thread stays where it is; new calls pass
        model.gate.set()
        await until(lambda: processor.metrics()["replaced_workers"] == 1)
        assert np.array_equal(await processor.embed("goes on"), model.vector("goes on"))
        hung.set()  # what comes back late is dropped
        await asyncio.sleep(0.05)
        assert np.array_equal(await processor.embed("hangs"), model.vector("hangs"))
        assert processor.metrics()["failures"]["timeout"] == 2
        await processor.aclose()

    run(main())


def test_when_no_thread_can_take_the_hung_ones_place_callers_still_get_their_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = FakeEmbedder()
    model.gate.clear()

    async def main() -> None:
        processor = BatchEmbeddingProcessor(model=model, timeout=1.5)
        first = asyncio.ensure_future(processor.embed("hangs"))
        await until(lambda: len(model.batches) == 1)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            await asyncio.sleep(0.1)
            second = asyncio.ensure_future(processor.embed("waits"))
            answers = await asyncio.gather(first, second, return_exceptions=True)
        assert [type(answer) for answer in answers] == [TimeoutError, TimeoutError]
        model.gate.set()
        assert np.array_equal(await processor.embed("goes on"), model.vector("goes on"))
        await processor.aclose()

    run(main())


def test_a_model_whose_loading_hangs_costs_its_callers_a_timeout() -> None:
    gate = threading.Event()

    def load() -> FakeEmbedder:
        gate.wait()
        return FakeEmbedder()

    async def main() -> None:
        async with BatchEmbeddingProcessor(model=load, timeout=0.8) as processor:
            with pytest.raises(TimeoutError, match=r"no vector for 0\.8 s"):
                await processor.embed("a")
            with pytest.raises(TimeoutError):
                await asyncio.to_thread(processor.embed_sync, "b")
            assert processor.metrics()["queue_texts"] == 0
            gate.set()
            assert (await processor.embed("c")).shape == (8,)

    run(main())


def test_a_plain_thread_gets_a_timeout_too() -> None:
    model = FakeEmbedder()
    model.gate.clear()
    processor = BatchEmbeddingProcessor(model=model, timeout=0.1)
    with pytest.raises(TimeoutError):
        processor.process_batch_sync(["a", "b"])
    model.gate.set()
    processor.close()


def test_a_large_call_that_advances_may_take_longer_than_the_timeout() -> None:
    model = FakeEmbedder(delay=0.3)

    async def main() -> None:
        async with BatchEmbeddingProcessor(model=model, batch_size=1, timeout=2.0) as processor:
            texts = [f"text {i}" for i in range(10)]
            in_a_thread = asyncio.to_thread(processor.process_batch_sync, texts[:5])
            vectors = await asyncio.gather(in_a_thread, processor.process_batch(texts[5:]))
        assert np.array_equal(np.concatenate(vectors), expected(model, texts))

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


def test_a_model_that_allows_one_thread_is_not_called_beside_its_worker() -> None:
    with BatchEmbeddingProcessor(model=FakeEmbedder()) as processor:
        assert processor.embed_here("now") is None
        assert processor.metrics()["requests"] == 0


def test_the_kill_switch_calls_the_model_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIMO_DISABLE", "cache, batch")
    model = FakeEmbedder(fail_on={"bad"}, nan_on={"nan"})
    before = threading.active_count()

    async def main() -> None:
        processor = BatchEmbeddingProcessor(batch_size=4, model=model)
        texts = [f"{i}" for i in range(10)]
        assert np.array_equal(await processor.process_batch(texts), expected(model, texts))
        assert np.array_equal(processor.process_batch_sync(texts), expected(model, texts))
        assert np.array_equal(await processor.embed("a"), model.vector("a"))
        assert processor.process_batch_sync([]).shape == (0, 8)
        with pytest.raises(RuntimeError, match="told to fail"):
            await processor.embed("bad")
        with pytest.raises(ValueError, match="NaN"):
            await processor.embed("nan")
        processor.close()
        with pytest.raises(ClosedError):
            await processor.embed("a")

    run(main())
    assert max(map(len, model.batches)) == 4
    assert threading.active_count() == before


# ---- metrics ----


def test_metrics_count_what_happened() -> None:
    import json

    async def main() -> None:
        async with BatchEmbeddingProcessor(model=FakeEmbedder()) as processor:
            await asyncio.gather(*(processor.embed(f"{i}") for i in range(10)))
            await processor.embed("3")
            metrics = processor.metrics()
            assert metrics["requests"] == metrics["successes"] == 11
            assert metrics["texts"] == 10
            assert metrics["batches"] == metrics["batch_texts"]["count"]
            assert metrics["request_seconds"]["count"] == 11
            assert metrics["request_seconds"]["p50"] <= metrics["request_seconds"]["p99"]
            assert metrics["queue_texts"] == metrics["running_texts"] == 0
            json.dumps(metrics, allow_nan=False)

    run(main())


def test_metrics_lose_no_event_however_many_come_at_a_time() -> None:
    metrics = BatchMetrics()

    def many() -> None:
        for i in range(2000):
            metrics.accepted(joined=i % 2)
            metrics.answered([(0.001, 0.002)])

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(many) for _ in range(4)]:
            future.result()
    found = metrics.snapshot()
    assert found["requests"] == found["successes"] == 8000
    assert found["deduplicated_texts"] == 4000
    assert found["request_seconds"]["count"] == 8000
    assert metrics.snapshot() == found


def test_prometheus_reads_the_metrics_under_text_embeddings_inference_like_names() -> None:
    prometheus_client = pytest.importorskip("prometheus_client")
    with BatchEmbeddingProcessor(model=FakeEmbedder()) as processor:
        processor.process_batch_sync(["a", "b"])
        registry = prometheus_client.CollectorRegistry()
        registry.register(processor.prometheus_collector(model="fake"))
        text = prometheus_client.generate_latest(registry).decode()
    assert 'aimo_request_count_total{model="fake"} 1.0' in text
    assert 'aimo_embed_count_total{model="fake"} 2.0' in text
    assert 'aimo_queue_size{model="fake"} 0.0' in text
    assert 'aimo_request_failure_total{err="timeout",model="fake"} 0.0' in text
    assert 'aimo_batch_next_size_bucket{le="2.0",model="fake"} 1.0' in text
    assert 'aimo_request_duration_count{model="fake"} 1.0' in text
