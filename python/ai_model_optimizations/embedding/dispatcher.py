"""The threads that turn waiting texts into batches and batches into answers.

A worker takes the waiting texts, runs the model without the lock, and answers all callers of an
event loop with one wake-up. While it runs, the next batch collects; an idle worker starts at once.
A watchdog abandons a worker whose model hangs and starts another.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import math
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..errors import ClosedError
from .delivery import deliver, for_one_caller
from .engine import Embedder, Engine, ShapeError
from .metrics import BatchMetrics
from .request_queue import Call, Item, Priority, RequestQueue, State
from .token_estimate import TokenEstimator
from .vector_cache import VectorCache

logger = logging.getLogger("ai_model_optimizations")

_EXIT_SECONDS: Final = 2.0  # that a running batch gets at interpreter exit
_LEAST_TRUST: Final = 1 / 16
_LONGEST_WAIT: Final = threading.TIMEOUT_MAX  # a lock refuses longer ones

_names = itertools.count()
_dispatchers: weakref.WeakSet[Dispatcher] = weakref.WeakSet()


class Worker:
    """One thread and the batch that it runs. Protected by the dispatcher's lock."""

    __slots__ = ("abandoned", "batch", "since", "thread")

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self.batch: list[Item] = []
        self.since = 0.0  # when the model was called, by time.perf_counter(); 0 outside of it
        self.abandoned = False  # given up by the watchdog; another one took its place


class Dispatcher:
    """Owns the queue, the worker threads and the model; knows nothing of coroutines.

    Parameters
    ----------
    load_model : called once, in a worker thread, at the first batch
    batch_size, max_tokens : bounds of a batch
    max_wait_time : seconds that a batch may wait for callers who were just answered
    max_queue : texts that may wait
    timeout : seconds without a vector after which a caller is told so, and after which one call
        of the model counts as hung; None is never
    workers : threads, so batches that run at a time
    cache_bytes : budget of the exact-text vector cache
    """

    def __init__(
        self,
        load_model: Callable[[], Embedder],
        *,
        batch_size: int,
        max_tokens: int,
        max_wait_time: float,
        max_queue: int,
        timeout: float | None,
        workers: int,
        cache_bytes: int,
    ) -> None:
        self._load_model = load_model
        self._batch_size = batch_size
        self._max_tokens = max_tokens
        self._max_wait_time = min(max_wait_time, _LONGEST_WAIT)
        self._max_queue = max_queue
        self._timeout = None if timeout is None else min(timeout, _LONGEST_WAIT)
        self._worker_count = workers
        self._cache_bytes = cache_bytes
        self.engine: Engine | None = None
        self._closing = False
        self._start_fresh()
        _dispatchers.add(self)

    def _start_fresh(self) -> None:
        """Set up everything that a forked child cannot share with its parent's threads."""
        self.metrics = BatchMetrics()
        self.cache = VectorCache(self._cache_bytes)
        self.tokens = TokenEstimator()
        if self.engine is not None:
            self.tokens.bind(self.engine.token_counter, self.engine.max_seq_length)
        self._load_lock = threading.Lock()
        self.direct_turns = threading.BoundedSemaphore(self._worker_count)  # AIMO_DISABLE=batch
        self._lock = threading.Lock()
        # One entry calls one parked worker. A condition would do the same in Python, where the
        # caller and the worker both pay for it before the model can start.
        self._work: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._company = threading.Condition(self._lock)  # a worker waits for more callers
        self._over = threading.Condition(self._lock)  # close() waits for the last answer
        self._alarm = threading.Condition(self._lock)  # the watchdog
        # All below is protected by the lock.
        self._queue = RequestQueue(self._max_queue)
        self._workers: list[Worker] = []
        self._watchdog: threading.Thread | None = None
        self._watchdog_sleeps = False
        self._parked = 0  # workers that wait for work and were not called yet
        self._gathering = False
        self._expected = 0  # calls answered by the last batch, whose callers may well come back
        self._arrived = 0  # calls that arrived since
        self._answered_at = 0.0
        self._trust = 1.0  # share of max_wait_time that waiting for them is worth

    # ---- callers' side ----

    @property
    def waiting_texts(self) -> int:
        """Texts in the queue, those of running batches not counted."""
        return self._queue.texts

    @property
    def waiting_tokens(self) -> int:
        """Estimated tokens of the texts in the queue."""
        return self._queue.tokens

    @property
    def running_texts(self) -> int:
        """Texts in batches that are running."""
        return len(self._queue.in_flight) - self._queue.texts

    @property
    def closing(self) -> bool:
        """Whether further work is refused."""
        return self._closing

    def submit(
        self,
        call: Call,
        texts: Sequence[str],
        tokens: Sequence[int],
        positions: Sequence[int],
        priority: Priority,
        *,
        beyond_limit: bool = False,
    ) -> None:
        """Queue the texts at `positions` of a call; its future gets the answer.

        Raises
        ------
        ClosedError, QueueFull
            If the dispatcher is closed, or the texts do not fit into the queue.
        """
        with self._lock:
            if self._closing:
                raise ClosedError("the batch processor is closed")
            # First: when no thread can start, nothing is queued yet.
            if self._watchdog is None and self._timeout is not None:
                self._start_watchdog(self._timeout)
            if len(self._workers) < self._worker_count and not self._parked:
                self._start_worker()
            known = len(self._queue.in_flight)
            self._queue.add(call, texts, tokens, positions, priority, beyond_limit=beyond_limit)
            joined = len(positions) - (len(self._queue.in_flight) - known)
            self._arrived += 1
            if self._gathering and self._patience() <= 0:
                self._company.notify()
            if self._watchdog_sleeps:
                self._alarm.notify()
            self.metrics.accepted(joined)
            if self._parked and not self._gathering:
                self._call_worker()  # last: it can only wait for the lock and the interpreter

    def abandon(self, call: Call) -> None:
        """Forget a call whose caller no longer waits, unless it already has its outcome."""
        with self._lock:
            if not call.is_open:
                return
            self._queue.drop(call)
            self._announce_if_over()
        self.metrics.failed("cancelled")

    def close(self, *, drain: bool, timeout: float | None) -> None:
        """Refuse further work, answer waiting calls or fail them with ClosedError, end threads."""
        if timeout is not None:
            timeout = min(timeout, _LONGEST_WAIT)
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            self._closing = True
            self._company.notify_all()
            if drain:
                self._over.wait_for(lambda: not self._queue.in_flight, timeout)
            lost = self._fail(self._queue.waiting_calls(), ClosedError("closed before its turn"))
            while self._parked:
                self._call_worker()
            self._alarm.notify_all()
            threads = [worker.thread for worker in self._workers]
            threads.append(self._watchdog)
        deliver(lost, self.metrics, "closed")
        for thread in threads:
            if thread is not None and thread is not threading.current_thread():
                thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))

    def restart_after_fork(self) -> None:
        """Start afresh in a child process, where none of the threads exist."""
        self._start_fresh()

    def load(self) -> Engine:
        """Return the model's engine, loading the model if necessary."""
        with self._load_lock:
            if self.engine is None:
                engine = Engine(self._load_model())
                self.tokens.bind(engine.token_counter, engine.max_seq_length)
                self.engine = engine
            return self.engine

    # ---- workers' side ----

    def _start_worker(self) -> None:
        worker = Worker()
        worker.thread = threading.Thread(
            target=self._work_loop, args=(worker,), name=f"aimo-batch-{next(_names)}", daemon=True
        )
        worker.thread.start()  # it waits for the lock, which the caller holds
        self._workers.append(worker)

    def _start_watchdog(self, timeout: float) -> None:
        watchdog = threading.Thread(
            target=self._watch, args=(timeout,), name="aimo-batch-watchdog", daemon=True
        )
        watchdog.start()
        self._watchdog = watchdog

    def _call_worker(self) -> None:
        """Wake a parked worker; the caller holds the lock."""
        self._work.put(None)
        self._parked -= 1

    def _work_loop(self, worker: Worker) -> None:
        while self._take_batch(worker):
            try:
                engine = self.load()
            except BaseException as error:
                logger.error("loading the embedding model failed: %s", type(error).__name__)
                self._settle_failure(worker, worker.batch, error)
                continue
            try:
                self._run(worker, engine, worker.batch)
            except BaseException as error:  # our own, such as no memory for the cache's copy
                logger.error("answering a batch failed: %s", type(error).__name__)
                left = [item for item in worker.batch if item.state is not State.OVER]
                self._settle_failure(worker, left, error)

    def _take_batch(self, worker: Worker) -> bool:
        """Wait for work and take it; False when this thread has to end."""
        with self._lock:
            worker.batch = []
            while not worker.abandoned:
                if not self._queue.texts:
                    if self._closing:
                        break
                    self._parked += 1
                    self._lock.release()
                    try:
                        self._work.get()
                    finally:
                        self._lock.acquire()
                elif (patience := self._patience()) > 0 and not self._gathering:
                    self._gathering = True
                    came = self._company.wait(patience)
                    self._gathering = False
                    self._trust = 1.0 if came else max(self._trust / 2, _LEAST_TRUST)
                    self._expected = 0
                else:
                    worker.batch = self._queue.take(self._batch_size, self._max_tokens)
                    now = time.perf_counter()
                    for item in worker.batch:
                        for call, _ in item.waiters:
                            call.started = call.started or now
                    if self._queue.texts and self._parked:
                        self._call_worker()
                    return True
            return False

    def _patience(self) -> float:
        """How long the next batch should still wait for more callers.

        Callers that were just answered often come straight back. Starting with the first of them
        would run one text now and make all others wait for it. So the batch waits until as many
        calls have arrived as were answered, for at most max_wait_time since then, and less if
        earlier waits were in vain. It never waits for a lone caller.
        """
        queue = self._queue
        if (
            self._arrived >= self._expected
            or queue.texts >= self._batch_size
            or queue.tokens >= self._max_tokens
            or self._closing
        ):
            return 0.0
        waited = time.perf_counter() - self._answered_at
        return self._max_wait_time * self._trust - waited

    def _run(self, worker: Worker, engine: Engine, batch: list[Item]) -> None:
        """Run a batch; when the model raises, run its halves, so that one bad text fails alone."""
        with self._lock:
            if worker.abandoned:
                return
            worker.since = time.perf_counter()
        texts = [item.text for item in batch]
        began = time.perf_counter()
        try:
            vectors = engine.encode(texts)
        except ShapeError as error:  # no text is to blame, so smaller batches would not help
            self._settle_failure(worker, batch, error)
        except BaseException as error:
            if len(batch) == 1:
                self._settle_failure(worker, batch, error)
                return
            half = len(batch) // 2
            self._run(worker, engine, batch[:half])
            self._run(worker, engine, batch[half:])
        else:
            self.metrics.ran(
                len(batch), sum(item.tokens for item in batch), time.perf_counter() - began
            )
            self._settle(worker, batch, vectors)
            self.tokens.learn(texts)

    def _settle(self, worker: Worker, batch: list[Item], vectors: NDArray[np.float32]) -> None:
        """Give the rows to their callers and keep them in the cache."""
        # Cheap, and never finite when a number is not. `sum` is a method in Python around this.
        with np.errstate(over="ignore", invalid="ignore"):
            total = np.add.reduce(vectors, axis=None)
        if not math.isfinite(total):
            finite = np.isfinite(vectors).all(axis=1)
            bad = [batch[i] for i in np.flatnonzero(~finite)]
            batch = [batch[i] for i in np.flatnonzero(finite)]
            vectors = vectors[finite]
            self._settle_failure(
                worker, bad, ValueError("the model returned NaN or infinity for this text")
            )
        self.cache.put_many([item.text for item in batch], vectors)
        done: list[Call] = []
        now = time.perf_counter()
        with self._lock:
            worker.since = 0.0
            if worker.abandoned:
                return
            for row, item in enumerate(batch):
                if item.state is State.OVER:
                    continue
                self._queue.finish(item)
                for call, position in item.waiters:
                    if call.is_open:
                        call.place(position, vectors[row])
                        if call.progressed < now:
                            call.progressed = now
                        if not call.left:
                            done.append(call)
            self._note_answers(len(done))
        deliver(done, self.metrics)

    def _settle_failure(self, worker: Worker, batch: list[Item], error: BaseException) -> None:
        """Give the error to every caller of these texts."""
        with self._lock:
            worker.since = 0.0
            if worker.abandoned:
                return
            lost = self._fail_items(batch, error)
            self._note_answers(len(lost))
        deliver(lost, self.metrics, "inference")

    def _fail_items(self, items: list[Item], error: BaseException) -> list[Call]:
        calls: dict[int, Call] = {}
        for item in items:
            self._queue.finish(item)
            calls.update((id(call), call) for call, _ in item.waiters if call.is_open)
        return self._fail(list(calls.values()), error)

    def _fail(self, calls: list[Call], error: BaseException) -> list[Call]:
        """End calls with an error; texts that no other call wants leave the queue."""
        for call in calls:
            call.error = for_one_caller(error)
            self._queue.drop(call)
        self._announce_if_over()
        return calls

    def _note_answers(self, calls: int) -> None:
        self._expected = calls if calls > 1 else 0
        self._arrived = 0
        self._answered_at = time.perf_counter()
        self._announce_if_over()

    def _announce_if_over(self) -> None:
        if self._closing and not self._queue.in_flight:
            self._over.notify_all()
            self._alarm.notify_all()

    def _watch(self, timeout: float) -> None:
        """End calls that have waited too long, and abandon workers whose model hangs.

        It wakes when the oldest call is due, so once per `timeout` under load, and sleeps while
        nothing is in flight.
        """
        with self._lock:
            while not (self._closing and not self._queue.in_flight):
                if not self._queue.in_flight:
                    self._watchdog_sleeps = True
                    self._alarm.wait()
                    self._watchdog_sleeps = False
                    continue
                now = time.perf_counter()
                lost = self._expire(now - timeout, timeout)
                hung = [w for w in self._workers if w.since and w.since <= now - timeout]
                lost += [call for worker in hung for call in self._replace(worker)]
                if lost:
                    self._lock.release()
                    try:
                        deliver(lost, self.metrics, "timeout")
                    finally:
                        self._lock.acquire()
                    continue
                since = [w.since for w in self._workers if w.since]
                since += [call.progressed for call in self._queue.waiting_calls()]
                self._alarm.wait(min([now, *since]) + timeout - now)

    def _expire(self, before: float, timeout: float) -> list[Call]:
        """Fail the calls that have received no vector since `before`."""
        late = [call for call in self._queue.waiting_calls() if call.progressed <= before]
        texts = self._queue.texts
        return self._fail(late, TimeoutError(f"no vector for {timeout} s ({texts} texts wait)"))

    def _replace(self, worker: Worker) -> list[Call]:
        logger.error(
            "the embedding model did not return within %s s; its worker thread is given up",
            self._timeout,
        )
        self.metrics.replaced_worker()
        worker.abandoned = True
        self._workers.remove(worker)
        lost = self._fail_items(
            worker.batch, TimeoutError(f"the model did not return within {self._timeout} s")
        )
        if self._queue.texts:
            try:
                self._start_worker()
            except RuntimeError as problem:  # no more threads; the next caller tries again
                logger.error("no worker takes its place: %s", problem)
        return lost


def _restart_all_after_fork() -> None:
    for dispatcher in list(_dispatchers):
        dispatcher.restart_after_fork()


def _close_all_at_exit() -> None:
    for dispatcher in list(_dispatchers):
        dispatcher.close(drain=False, timeout=_EXIT_SECONDS)


os.register_at_fork(after_in_child=_restart_all_after_fork)
atexit.register(_close_all_at_exit)
