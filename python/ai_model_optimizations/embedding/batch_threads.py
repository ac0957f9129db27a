"""Runs the batches of one call on several threads.

While one thread's batch is computed, without the GIL, another's is tokenized; and at the end of a
batch no thread waits for the others.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator

from .. import _core


def for_each_batch(starts: Iterable[int], work: Callable[[int], None], threads: int) -> None:
    """Call ``work`` with every start, on the calling thread and up to ``threads - 1`` others.

    Starts are taken in order. After a failure no further one is taken, and when all threads are
    back the exception of the first batch that failed is raised.
    """
    batches = _Batches(iter(starts), work)
    if threads <= 1:
        batches.run()
        batches.raise_first_error()
        return
    helpers = [threading.Thread(target=batches.run_busy) for _ in range(threads - 1)]
    started = []
    try:
        for helper in helpers:
            try:
                helper.start()
            except RuntimeError:  # no more threads can be started: the others do its share
                break
            started.append(helper)
        batches.run_busy()
    finally:
        batches.stop()
        for helper in started:
            helper.join()
    batches.raise_first_error()


class _Batches:
    def __init__(self, starts: Iterator[int], work: Callable[[int], None]) -> None:
        self._starts: Iterator[int] | None = starts
        self._work = work
        self._errors: dict[int, BaseException] = {}
        self._lock = threading.Lock()

    def run(self) -> None:
        while (start := self._take()) is not None:
            try:
                self._work(start)
            except BaseException as error:  # raised again on the caller's thread
                self.stop()
                self._errors[start] = error

    def run_busy(self) -> None:
        # Otherwise a worker of the pool would help the other threads whenever this one is between
        # two batches, and compete with it when the next batch begins.
        _core.set_busy(True)
        try:
            self.run()
        finally:
            _core.set_busy(False)

    def _take(self) -> int | None:
        with self._lock:  # iterators are not thread-safe
            starts = self._starts
            return None if starts is None else next(starts, None)

    def stop(self) -> None:
        """Let no thread take another batch."""
        self._starts = None

    def raise_first_error(self) -> None:
        if not self._errors:
            return
        first = self._errors[min(self._errors)]
        # The traceback refers to this frame: a cycle that would keep the vectors alive until the
        # garbage collector runs.
        self._errors.clear()
        try:
            raise first
        finally:
            del first
