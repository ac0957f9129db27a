"""Models that misbehave, fail to load or hang: what the callers of BatchEmbeddingProcessor get."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest
from batching_helpers import expected, no_thread, run, until

from ai_model_optimizations import BatchEmbeddingProcessor
from ai_model_optimizations.testing import FakeEmbedder

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


def test_an_exception_keeps_its_message_and_its_cause() -> None:
    class CodeError(Exception):
        def __init__(self, code: int) -> None:
            super().__init__(f"failed with code {code}")

    class Chained:
        def encode(self, texts: list[str]) -> Any:
            try:
                raise KeyError(texts[0])
            except KeyError as cause:
                raise (CodeError(3) if texts == ["code"] else OSError(5, "gone")) from cause

    with BatchEmbeddingProcessor(model=Chained()) as processor:
        for text, message in (("code", "failed with code 3"), ("other", "[Errno 5] gone")):
            with pytest.raises((CodeError, OSError)) as caught:
                processor.embed_sync(text)
            assert str(caught.value) == message
            assert isinstance(caught.value.__cause__, KeyError)


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


@pytest.mark.parametrize(
    "row", [[np.inf, -np.inf], [3e38, 3e38], [np.nan, 1.0]], ids=["infinite", "large", "nan"]
)
def test_what_is_not_finite_is_found_without_a_warning(row: list[float]) -> None:
    class Odd:
        def encode(self, texts: list[str]) -> np.ndarray:
            return np.array([row if text == "odd" else [1.0, 2.0] for text in texts], np.float32)

    async def main() -> None:
        async with BatchEmbeddingProcessor(model=Odd(), timeout=5) as processor:
            if np.isfinite(row).all():
                assert np.array_equal(await processor.embed("odd"), np.float32(row))
            else:
                with pytest.raises(ValueError, match="NaN or infinity"):
                    await processor.embed("odd")
            assert np.array_equal(await processor.embed("even"), [1.0, 2.0])

    run(main())


def test_a_failure_of_our_own_reaches_the_callers_and_the_worker_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = FakeEmbedder()

    def no_memory(texts: list[str], vectors: np.ndarray) -> None:
        raise MemoryError("for the copy")

    async def main() -> None:
        async with BatchEmbeddingProcessor(model=model, timeout=None) as processor:
            with monkeypatch.context() as patch:
                patch.setattr(processor._dispatcher.cache, "put_many", no_memory)
                with pytest.raises(MemoryError, match="for the copy"):
                    await asyncio.wait_for(processor.process_batch(["a", "b"]), 10)
            assert np.array_equal(await processor.embed("c"), model.vector("c"))

    run(main())
    assert "answering a batch failed" in caplog.text


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


def test_a_class_is_called_as_any_function_that_returns_a_model() -> None:
    with BatchEmbeddingProcessor(model=FakeEmbedder) as processor:
        assert np.array_equal(processor.embed_sync("a"), FakeEmbedder().vector("a"))


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


# ---- time ----


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


def test_a_watchdog_that_could_not_start_is_started_by_the_next_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = threading.Thread.start

    def no_watchdog(thread: threading.Thread) -> None:
        if thread.name.endswith("watchdog"):
            no_thread(thread)
        start(thread)

    model = FakeEmbedder()

    async def main() -> None:
        processor = BatchEmbeddingProcessor(model=model, timeout=0.5)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_watchdog)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                await processor.embed("a")
        assert np.array_equal(await processor.embed("b"), model.vector("b"))
        model.gate.clear()
        with pytest.raises(TimeoutError):
            await processor.embed("c")
        model.gate.set()
        processor.close()

    run(main())


def test_times_longer_than_a_lock_can_wait_are_times() -> None:
    model = FakeEmbedder()

    async def main() -> None:
        processor = BatchEmbeddingProcessor(model=model, timeout=1e300, max_wait_time=1e300)
        model.gate.clear()
        calls = [asyncio.ensure_future(processor.embed(text)) for text in "ab"]
        await until(lambda: len(model.batches) == 1)
        model.gate.set()
        await asyncio.gather(*calls)
        one = asyncio.ensure_future(processor.embed("c"))
        await asyncio.sleep(0.1)  # it is waited for as many as were answered: for ever
        await asyncio.gather(one, *(processor.embed(text) for text in "defgh"))
        assert [t.name for t in threading.enumerate() if t.name.endswith("watchdog")]
        await processor.aclose(timeout=1e300)

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
