"""What the batch processor does under ``AIMO_DISABLE=batch``: texts go to the model directly."""

from __future__ import annotations

import asyncio
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
    dispatcher : loads the model, says whether work is taken and bounds the calls at a time;
        nothing is queued in it
    batch_size : texts in one call of the model, at most
    """

    def __init__(self, dispatcher: Dispatcher, batch_size: int) -> None:
        self._dispatcher = dispatcher
        self._batch_size = batch_size

    async def encode(self, texts: list[str], timeout: float | None) -> NDArray[np.float32]:
        """Embed `texts` without blocking the loop; (len(texts), dim) float32."""
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(None, self.encode_sync, texts)
        done, _ = await asyncio.wait([running], timeout=timeout)
        if not done:
            running.cancel()
            raise TimeoutError(f"no vector within {timeout} s")
        return running.result()

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
        if not np.isfinite(vectors).all():
            raise ValueError("the model returned NaN or infinity")
        return vectors.astype(np.float32, copy=False)
