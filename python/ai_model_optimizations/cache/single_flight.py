"""One computation per question, however many threads and event loops ask for it at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import CancelledError, Future
from contextvars import ContextVar
from typing import Any, Generic, TypeVar

from .._futures import for_a_future

T = TypeVar("T")


class _Flight(Generic[T]):
    """A running computation and the thread that runs it."""

    __slots__ = ("future", "task", "thread")

    def __init__(self) -> None:
        self.future: Future[T] = Future()
        self.thread = threading.get_ident()
        # Event loops hold their tasks weakly; this keeps the computation alive.
        self.task: asyncio.Task[None] | None = None

    def is_stranded(self) -> bool:
        """Whether its event loop was closed before it finished, so that it never will."""
        return self.task is not None and self.task.get_loop().is_closed()


#: The flights that the current task or thread is computing, outermost first.
_leading: ContextVar[tuple[_Flight[Any], ...]] = ContextVar("leading", default=())


class SingleFlight(Generic[T]):
    """Runs a function once per key at a time; callers who ask meanwhile get the same outcome.

    An exception goes to every waiting caller. A cancelled computation is taken over by one of them.
    When a caller is cancelled, the computation goes on for the others.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[Hashable, _Flight[T]] = {}

    def _join(self, key: Hashable) -> tuple[_Flight[T], bool]:
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None and not flight.is_stranded():
                return flight, False
            if flight is not None:
                flight.future.cancel()  # one of the waiting callers takes it over
            flight = self._flights[key] = _Flight()
            return flight, True

    def _land(self, key: Hashable, flight: _Flight[T]) -> None:
        with self._lock:
            if self._flights.get(key) is flight:
                del self._flights[key]

    def run(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Call `compute`, or wait for the call that is already running for `key`."""
        while True:
            flight, leads = self._join(key)
            if leads:
                return self._lead(key, flight, compute)
            if flight.thread == threading.get_ident() or flight in _leading.get():
                # A recursive call, or one from the event loop that the leader itself needs:
                # waiting would never end.
                return compute()
            try:
                return flight.future.result()
            except CancelledError:
                continue

    def _lead(self, key: Hashable, flight: _Flight[T], compute: Callable[[], T]) -> T:
        try:
            result = compute()
        except BaseException as error:
            self._fail(key, flight, error)
            raise
        self._land(key, flight)
        flight.future.set_result(result)
        return result

    def _fail(self, key: Hashable, flight: _Flight[T], error: BaseException) -> None:
        self._land(key, flight)
        if isinstance(error, Exception):
            flight.future.set_exception(for_a_future(error))
        else:
            # Ctrl-C and cancellation concern only the leading caller; another takes over.
            flight.future.cancel()

    async def run_async(self, key: Hashable, compute: Callable[[], Awaitable[T]]) -> T:
        """As `run`, for a coroutine function."""
        while True:
            flight, leads = self._join(key)
            if leads:
                # A task of its own, so that cancelling the caller does not cancel it for everyone.
                flight.task = asyncio.create_task(self._lead_async(key, flight, compute))
            elif flight in _leading.get():
                return await compute()  # a recursive call, as in `run`
            outcome = asyncio.wrap_future(flight.future)
            outcome.add_done_callback(_retrieve)
            # `wait` raises only when this caller is cancelled, and leaves the outcome alone.
            await asyncio.wait([outcome])
            if not outcome.cancelled():
                return outcome.result()
            if leads:
                raise asyncio.CancelledError

    async def _lead_async(
        self, key: Hashable, flight: _Flight[T], compute: Callable[[], Awaitable[T]]
    ) -> None:
        _leading.set((*_leading.get(), flight))  # in this task's own context
        try:
            result = await compute()
        except BaseException as error:
            self._fail(key, flight, error)
            if not isinstance(error, Exception):
                raise
        else:
            self._land(key, flight)
            flight.future.set_result(result)


def _retrieve(outcome: asyncio.Future[T]) -> None:
    """Mark an exception as retrieved: a cancelled caller will not do so."""
    if not outcome.cancelled():
        outcome.exception()
