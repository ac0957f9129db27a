"""What callers of BatchEmbeddingProcessor can rely on, with a stand-in for the model."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import threading
from typing import Any

import numpy as np
import pytest
from batching_helpers import expected, run, until

from ai_model_optimizations import BatchEmbeddingProcessor, ClosedError
from ai_model_optimizations.testing import FakeEmbedder

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
        (np.array("a"), "texts: expected an array of one dimension, got 0"),
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


# ---- past the queue ----


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


def test_with_the_kill_switch_a_caller_who_left_leaves_no_error_to_be_logged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AIMO_DISABLE", "batch")
    model = FakeEmbedder(fail_on={"bad"})
    model.gate.clear()
    logged: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: logged.append(context))
        processor = BatchEmbeddingProcessor(model=model)
        call = asyncio.ensure_future(processor.embed("bad"))
        await until(lambda: len(model.batches) == 1)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        model.gate.set()
        await asyncio.get_running_loop().shutdown_default_executor()
        await asyncio.sleep(0)
        del call
        gc.collect()

    run(main())
    assert not logged
