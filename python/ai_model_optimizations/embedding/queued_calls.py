"""What happens to one caller's texts: answered from the cache, or queued in windows and awaited.

The steps are the same for a coroutine and for a plain thread; only the waiting differs.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import ClosedError, QueueFull
from .dispatcher import Dispatcher
from .request_queue import Call, Priority

# A large call is fed to the queue in windows, two at a time: the queue never runs dry between
# them, other callers find room, and a million texts take little more memory than their vectors.
_WINDOW_BATCHES: Final = 8
_WINDOWS_IN_FLIGHT: Final = 2


class QueuedCalls:
    """Puts texts into a dispatcher's queue and waits for their vectors.

    Parameters
    ----------
    batch_size : maximum texts in one call of the model
    max_queue : maximum waiting texts
    """

    def __init__(self, dispatcher: Dispatcher, batch_size: int, max_queue: int) -> None:
        self._dispatcher = dispatcher
        self._window = max(1, min(_WINDOW_BATCHES * batch_size, max_queue))

    async def encode(
        self,
        texts: list[str],
        priority: Priority,
        progress: Callable[[int, int], object] | None,
        *,
        expires: bool,
    ) -> NDArray[np.float32]:
        """Embed `texts`, at least one; (len(texts), dim) float32.

        Parameters
        ----------
        progress : called with (texts done, total texts) after each window
        expires : whether waiting ends with the dispatcher's timeout
        """
        loop = asyncio.get_running_loop()
        if len(texts) <= self._window:
            return await self._answer(self._begin(texts, loop, priority), expires)
        pending: deque[Call] = deque()
        steps = self._windows(texts, loop, priority, progress, pending)
        try:
            call = next(steps)
            while True:
                call = steps.send(await self._answer(call, expires))
        except StopIteration as end:
            return cast("NDArray[np.float32]", end.value)
        except (Exception, asyncio.CancelledError):
            # Not after GeneratorExit: the garbage collector may raise it in any thread, even in
            # one that holds the dispatcher's lock.
            self._forget(pending)
            raise

    def encode_sync(
        self,
        texts: list[str],
        priority: Priority,
        progress: Callable[[int, int], object] | None,
        *,
        expires: bool,
    ) -> NDArray[np.float32]:
        """As :meth:`encode`; blocks the thread."""
        if len(texts) <= self._window:
            return self._answer_sync(self._begin(texts, None, priority), expires)
        pending: deque[Call] = deque()
        steps = self._windows(texts, None, priority, progress, pending)
        try:
            call = next(steps)
            while True:
                call = steps.send(self._answer_sync(call, expires))
        except StopIteration as end:
            return cast("NDArray[np.float32]", end.value)
        except BaseException:
            self._forget(pending)
            raise

    def _windows(
        self,
        texts: list[str],
        loop: asyncio.AbstractEventLoop | None,
        priority: Priority,
        progress: Callable[[int, int], object] | None,
        pending: deque[Call],
    ) -> Generator[Call, NDArray[np.float32], NDArray[np.float32]]:
        """Feed a large input: yields each call to wait for, receives its answer, returns all."""
        vectors: NDArray[np.float32] | None = None
        starts = range(0, len(texts), self._window)
        unsent = iter(starts)
        for done in starts:
            for start in itertools.islice(unsent, _WINDOWS_IN_FLIGHT - len(pending)):
                part = texts[start : start + self._window]
                pending.append(self._begin(part, loop, priority, continues=start > 0))
            answer = yield pending[0]
            pending.popleft()
            if vectors is None:
                vectors = np.empty((len(texts), answer.shape[1]), np.float32)
            vectors[done : done + len(answer)] = answer
            if progress is not None:
                progress(done + len(answer), len(texts))
        return cast("NDArray[np.float32]", vectors)

    def _begin(
        self,
        texts: list[str],
        loop: asyncio.AbstractEventLoop | None,
        priority: Priority,
        *,
        continues: bool = False,
    ) -> Call:
        """Answer what the cache has and queue the rest, shortest first."""
        dispatcher = self._dispatcher
        if dispatcher.closing:
            raise ClosedError("the batch processor is closed")
        call = Call(len(texts), loop, time.perf_counter())
        missing = call.place_cached(dispatcher.cache.get_many(texts))
        if not missing:
            call.resolve()
            dispatcher.metrics.served_from_cache()
            return call
        tokens = list(map(dispatcher.tokens.estimate, texts))
        if len(missing) > 1:  # models that pad waste less on batches of similar lengths
            missing.sort(key=tokens.__getitem__)
        try:
            dispatcher.submit(call, texts, tokens, missing, priority, beyond_limit=continues)
        except QueueFull:
            dispatcher.metrics.refused("overloaded")
            raise
        return call

    async def _answer(self, call: Call, expires: bool) -> NDArray[np.float32]:
        future = cast("asyncio.Future[NDArray[np.float32]]", call.future)
        if future.done():
            return future.result()
        if expires:
            call.start_clock()
        try:
            return await future
        except asyncio.CancelledError:
            self._dispatcher.abandon(call)
            raise

    def _answer_sync(self, call: Call, expires: bool) -> NDArray[np.float32]:
        future = cast("concurrent.futures.Future[NDArray[np.float32]]", call.future)
        if expires:
            call.start_clock()
        try:
            return future.result()
        except BaseException:  # KeyboardInterrupt above all
            self._dispatcher.abandon(call)
            raise

    def _forget(self, calls: Iterable[Call]) -> None:
        """Abandon calls that nobody awaits any more, and their errors."""
        for call in calls:
            self._dispatcher.abandon(call)
            if call.loop is not None and not call.future.cancel() and not call.future.cancelled():
                call.future.exception()  # retrieved, so that asyncio does not log it
