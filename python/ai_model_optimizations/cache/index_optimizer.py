"""When the index relearns the directions in which its rows differ.

Lookups are exact without it and fast with it. Learning takes up to a second, so it runs in a thread
of its own while lookups and puts go on: each time the cache has doubled, and in a full cache each
time its entries have been replaced several times over, as their topics may have changed too.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from .._core import EmbeddingIndex

_log = logging.getLogger("ai_model_optimizations")

# Below this number of rows, reading every row is as fast.
_FIRST = 256
# After this many puts per row since it last learned, most of the rows it learned from are gone.
_TURNOVER = 4


class IndexOptimizer:
    """Makes one index learn as it grows; one thread at a time.

    Parameters
    ----------
    learned : called with the index each time it has learned
    """

    def __init__(self, learned: Callable[[EmbeddingIndex], object] | None = None) -> None:
        self._learned = learned
        self._next_rows = _FIRST
        self._next_puts = 0
        self._running = threading.Lock()
        #: The latest thread, for callers that want to wait for it.
        self.thread: threading.Thread | None = None

    def grown(self, index: EmbeddingIndex | None, rows: int, puts: int) -> None:
        """Start learning if the index has doubled, or been replaced, since it last learned.

        Parameters
        ----------
        rows : in the index now
        puts : rows ever put into it
        """
        if rows < self._next_rows and (puts < self._next_puts or rows < _FIRST):
            return
        if index is None or not self._running.acquire(blocking=False):
            return
        self._next_rows = 2 * rows
        self._next_puts = puts + _TURNOVER * rows
        self.thread = threading.Thread(
            target=self._learn, args=(index,), name="aimo-cache-index", daemon=True
        )
        self.thread.start()

    def _learn(self, index: EmbeddingIndex) -> None:
        try:
            index.optimize()
            if self._learned is not None:
                self._learned(index)
        except MemoryError:
            _log.warning("no memory to optimize the cache's index; lookups stay exact but slower")
        finally:
            self._running.release()
