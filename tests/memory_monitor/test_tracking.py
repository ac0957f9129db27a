"""MemoryTracker and track_memory, in blocks, functions, coroutines and methods."""

import asyncio
import inspect
import json
import logging
from collections.abc import AsyncGenerator, Iterator

import pytest

from ai_model_optimizations.memory_monitor import MemoryTracker, track_memory


def test_a_block_that_keeps_memory_shows_what_it_kept() -> None:
    with MemoryTracker("load") as tracker:
        kept = bytearray(b"x" * (64 << 20))
    assert 60 < tracker.delta_mb < 80
    assert tracker.after_mb == pytest.approx(tracker.before_mb + tracker.delta_mb, abs=0.02)
    assert tracker.seconds > 0 and len(kept) == 64 << 20
    figures = tracker.to_dict()
    assert figures["name"] == "load"
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_an_exception_passes_and_the_figures_are_there() -> None:
    tracker = MemoryTracker()
    with pytest.raises(KeyError), tracker:
        raise KeyError("inside")
    assert tracker.seconds > 0


def test_a_tracker_can_be_entered_again() -> None:
    tracker = MemoryTracker()
    with tracker:
        kept = bytearray(b"x" * (64 << 20))
    first = tracker.delta_mb
    with tracker:
        pass
    assert first > 60 and abs(tracker.delta_mb) < 8 and len(kept) > 0


def test_before_it_is_entered_nothing_has_changed() -> None:
    assert MemoryTracker().to_dict()["delta_mb"] == 0


def test_calls_are_logged_with_their_name(caplog: pytest.LogCaptureFixture) -> None:
    @track_memory("work", log_level=logging.INFO)
    def double(x: int, *, times: int = 2) -> int:
        """Double it."""
        return x * times

    with caplog.at_level(logging.INFO, "ai_model_optimizations"):
        assert double(4, times=3) == 12
    assert caplog.messages[0].startswith("work: ")
    assert double.__doc__ == "Double it."
    assert double.__name__ == "double"


def test_plain_and_called_decorators_work_on_functions_methods_and_coroutines(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Service:
        @track_memory
        def handle(self, text: str) -> str:
            return text.upper()

        @track_memory()
        async def handle_async(self, text: str) -> str:
            await asyncio.sleep(0)
            return text.lower()

    with caplog.at_level(logging.DEBUG, "ai_model_optimizations"):
        assert Service().handle("a") == "A"
        assert asyncio.run(Service().handle_async("B")) == "b"
    assert inspect.iscoroutinefunction(Service.handle_async)
    own = [record for record in caplog.records if record.name == "ai_model_optimizations"]
    assert ["Service.handle:" in own[0].message, "handle_async" in own[1].message] == [True, True]


def test_generators_are_measured_until_they_end(caplog: pytest.LogCaptureFixture) -> None:
    @track_memory
    def parts() -> Iterator[str]:
        got = yield "a"
        yield f"got {got}"

    assert inspect.isgeneratorfunction(parts)
    with caplog.at_level(logging.DEBUG, "ai_model_optimizations"):
        generator = parts()
        assert next(generator) == "a" and generator.send(1) == "got 1"
        assert not caplog.records
        assert list(generator) == [] and len(caplog.records) == 1


def test_async_generators_are_measured_and_get_what_is_sent_and_thrown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[object] = []

    @track_memory
    async def parts() -> AsyncGenerator[object, object]:
        try:
            seen.append((yield "a"))
            await asyncio.sleep(0)
            yield "b"
        except (asyncio.CancelledError, ValueError) as error:
            seen.append(type(error))
            yield "caught"
        finally:
            seen.append("closed")

    async def main() -> None:
        assert [part async for part in parts()] == ["a", "b"]
        sent = parts()
        assert await sent.asend(None) == "a" and await sent.asend(1) == "b"
        await sent.aclose()
        for error in (ValueError(), asyncio.CancelledError()):
            thrown = parts()
            await thrown.asend(None)
            assert await thrown.athrow(error) == "caught"
            assert [part async for part in thrown] == []
        with pytest.raises(KeyError):
            failing = parts()
            await failing.asend(None)
            await failing.athrow(KeyError())

    assert inspect.isasyncgenfunction(parts)
    with caplog.at_level(logging.DEBUG, "ai_model_optimizations"):
        asyncio.run(main())
    rest = [ValueError, "closed", asyncio.CancelledError, "closed", "closed"]
    assert seen == [None, "closed", 1, "closed", *rest]
    assert sum("parts" in record.getMessage() for record in caplog.records) == 5


def test_an_awaited_failure_passes() -> None:
    @track_memory
    async def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        asyncio.run(fail())


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="name"):
        MemoryTracker(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="function or a name"):
        track_memory(5)  # type: ignore[call-overload]
