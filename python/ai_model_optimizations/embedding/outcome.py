"""The future of a coroutine that waits for vectors; its task continues in the wake-up itself."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray


class LoopOutcome(asyncio.Future[NDArray[np.float32]]):
    """A future that a batch's wake-up of the loop resolves.

    ``set_result`` makes the loop call the waiting task in its next round, after polling its
    selector and running whatever else is ready. :meth:`settle` calls it immediately.
    """

    _waiter: tuple[Callable[..., object], contextvars.Context | None] | None = None

    def add_done_callback(
        self, fn: Callable[..., object], /, *, context: contextvars.Context | None = None
    ) -> None:
        """As in ``asyncio.Future``; a task does so when it begins to wait."""
        super().add_done_callback(fn, context=context)
        self._waiter = (fn, context)

    def settle(self, vectors: NDArray[np.float32]) -> None:
        """Set the result and run the tasks that wait for it; only from a callback of the loop.

        Inside a task, the loop would find another one running.
        """
        waiter, self._waiter = self._waiter, None
        # One that no longer waits has removed itself.
        if waiter is None or not self.remove_done_callback(waiter[0]):
            self.set_result(vectors)
            return
        wake, context = waiter
        self.set_result(vectors)
        if context is None:
            wake(self)
        else:
            context.run(wake, self)
