"""Texts that bypass the queue: one that may not wait, and all with ``AIMO_DISABLE=batch``."""

from __future__ import annotations

import asyncio
import time
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import ClosedError
from .dispatcher import Dispatcher

_ANY_TEXT: Final = "Tells the dimension."


class DirectCalls:
    """Calls the model in the caller's thread, or in one of its event loop's executor.

    Parameters
    ----------
    dispatcher : loads the model, says whether work is accepted and limits concurrent calls; nothing
        is queued in it
    batch_size : maximum texts in one call of the model
    """

    def __init__(self, dispatcher: Dispatcher, batch_size: int) -> None:
        self._dispatcher = dispatcher
        self._batch_size = batch_size

    async def encode(self, texts: list[str], timeout: float | None) -> NDArray[np.float32]:
        """Embed `texts` without blocking the loop; (len(texts), dim) float32."""
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(None, self.encode_sync, texts)
        try:
            done, _ = await asyncio.wait([running], timeout=timeout)
            if not done:
                raise TimeoutError(f"no vector within {timeout} s")
            return running.result()
        finally:
            running.cancel()  # the caller has left, so nobody would receive an exception

    def encode_one(self, text: str) -> NDArray[np.float32] | None:
        """Embed a text without waiting for any batch; (dim,) float32.

        None if the model cannot be called while a batch runs. Loads the model if necessary.
        """
        dispatcher = self._dispatcher
        began = time.perf_counter()
        if dispatcher.closing:
            raise ClosedError("the batch processor is closed")
        known = dispatcher.cache.get_many([text])[0]
        if known is not None:
            dispatcher.metrics.served_from_cache()
            return cast("NDArray[np.float32]", known.copy())
        engine = dispatcher.load()
        if not engine.is_ours:
            return None
        dispatcher.metrics.accepted(joined=0)
        try:
            vectors = _finite(engine.encode([text]))
        except BaseException:
            dispatcher.metrics.failed("inference")
            raise
        took = time.perf_counter() - began
        dispatcher.cache.put_many([text], vectors)
        dispatcher.metrics.ran(1, dispatcher.tokens.estimate(text), took)
        dispatcher.metrics.answered([(0.0, took)])
        return cast("NDArray[np.float32]", vectors[0])

    def encode_sync(self, texts: list[str]) -> NDArray[np.float32]:
        """Embed `texts`; (len(texts), dim) float32."""
        if self._dispatcher.closing:
            raise ClosedError("the batch processor is closed")
        engine = self._dispatcher.load()
        with self._dispatcher.direct_turns:
            if not texts and engine.dimension is None:
                engine.encode([_ANY_TEXT])
            parts = [
                engine.encode(texts[start : start + self._batch_size])
                for start in range(0, len(texts), self._batch_size)
            ]
        vectors = np.concatenate(parts) if parts else np.empty((0, cast(int, engine.dimension)))
        return _finite(vectors.astype(np.float32, copy=False))


def _finite(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isfinite(vectors).all():
        raise ValueError("the model returned NaN or infinity")
    return vectors
