"""One daemon thread that runs calls one after another.

The threads of `concurrent.futures` are joined when the interpreter exits and are gone after a fork,
so a hanging model would keep a process from exiting, and a child from answering. The thread here is
a daemon, and a child starts a new one.
"""

from __future__ import annotations

import os
import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from .._futures import for_a_future

T = TypeVar("T")
_Job = tuple["Future[Any]", Callable[[], Any]]


class SerialExecutor:
    """Runs calls in order, in a thread that starts with the first call.

    Parameters
    ----------
    name : the thread's name
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._start_anew()
        _executors.add(self)

    def _start_anew(self) -> None:
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._began: list[float] = []  # when the running call began; empty if there is none
        self._thread: threading.Thread | None = None

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Queue a call; cancelling the future before its turn skips it."""
        future: Future[T] = Future()
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=_run, args=(self._jobs, self._began), name=self._name, daemon=True
                )
                self._thread.start()
            self._jobs.put((future, call))
        return future

    def is_current(self) -> bool:
        """Whether the calling thread is the executor's own, where waiting for a call never ends."""
        return threading.current_thread() is self._thread

    def busy_for(self) -> float:
        """Return how many seconds the running call has taken; 0 if there is none."""
        try:
            return time.monotonic() - self._began[0]
        except IndexError:
            return 0.0

    def __del__(self) -> None:
        # Wakes the thread so that it ends; it refers only to the queue, never to the executor.
        self._jobs.put(None)


_executors: weakref.WeakSet[SerialExecutor] = weakref.WeakSet()


def _start_anew_after_fork() -> None:
    for executor in list(_executors):
        executor._start_anew()


os.register_at_fork(after_in_child=_start_anew_after_fork)


def _run(jobs: queue.SimpleQueue[_Job | None], began: list[float]) -> None:
    while (job := jobs.get()) is not None:
        future, call = job
        if future.set_running_or_notify_cancel():
            began.append(time.monotonic())
            try:
                result = call()
            except BaseException as error:
                began.clear()
                future.set_exception(for_a_future(error))
            else:
                began.clear()
                future.set_result(result)
                del result
        # The last call's objects must not stay alive until the next call.
        del job, future, call
