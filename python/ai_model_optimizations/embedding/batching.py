"""Merges what many callers want embedded into batches that the model runs at full speed.

The class here is what users see: coroutines and plain calls, checks, state, metrics. A caller's
texts go to the queue and come back in :mod:`.queued_calls`, batches are formed and run in
:mod:`.dispatcher`, the order is kept in :mod:`.request_queue`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from .._environment import disabled
from .._prometheus import register
from .arguments import check_count, check_number
from .direct_calls import DirectCalls
from .dispatcher import Dispatcher
from .engine import Embedder, load_by_name, model_loader
from .metrics import PrometheusCollector
from .queued_calls import QueuedCalls
from .request_queue import PRIORITY_SHARES, Priority
from .settings import read_settings

if TYPE_CHECKING:
    from prometheus_client.registry import CollectorRegistry

_MIB: Final = 2**20
_CHECKED_AT_ONCE: Final = 65_536  # texts, about a millisecond of the event loop
_WARM_UP_TEXT: Final = "The first batches after a start are slower, so none of them is a user's."


class BatchEmbeddingProcessor:
    """Embeds the texts of concurrent callers in shared batches.

    >>> processor = BatchEmbeddingProcessor(batch_size=32)
    >>> vectors = await processor.process_batch(["first text", "second text"])   # (2, dim) float32

    A batch starts as soon as a worker is free and takes everything that is waiting, within its
    limits; the next one collects while it runs. Equal texts in flight are computed once, and a
    cache keeps vectors for texts that recur. One processor serves any number of event loops and
    threads.

    Parameters
    ----------
    batch_size : maximum texts in one call of the model
    max_wait_time : maximum seconds that a batch waits for as many callers as the last batch
        answered; a lone caller and an idle processor never wait
    model : an object with ``encode(texts)`` (an EmbeddingModel, a SentenceTransformer, ...), a
        function that returns one, or a model's name or path; the default model when None. It is
        loaded once, in a worker thread, by the first batch or by :meth:`warmup`.
    max_tokens : maximum estimated tokens in one call of the model; a longer text runs alone
    max_queue : maximum waiting texts; beyond it callers get QueueFull
    timeout : seconds without a new vector after which a caller gets TimeoutError; a large call may
        take longer as long as it makes progress. A model call that takes this long for one batch is
        abandoned, and the model is called from a new thread. None waits forever
    workers : batches that run concurrently, each in its own thread; the model must allow it
    cache_mb : memory for cached vectors, looked up by exact text, in MiB; 0 for none

    Notes
    -----
    With ``AIMO_DISABLE=batch`` in the environment texts go to the model directly.
    """

    def __init__(
        self,
        batch_size: int = 32,
        max_wait_time: float = 0.002,
        *,
        model: Embedder | Callable[[], Embedder] | str | os.PathLike[str] | None = None,
        max_tokens: int = 16384,
        max_queue: int = 4096,
        timeout: float | None = 30.0,
        workers: int = 1,
        cache_mb: float = 32.0,
    ) -> None:
        check_count("batch_size", batch_size)
        check_count("max_tokens", max_tokens)
        check_count("max_queue", max_queue)
        check_count("workers", workers)
        check_number("max_wait_time", max_wait_time, at_least_zero=True)
        check_number("cache_mb", cache_mb, at_least_zero=True)
        if timeout is not None:
            check_number("timeout", timeout, at_least_zero=False)
        self.batch_size = batch_size
        self.timeout = timeout
        self._bypass = disabled("batch")
        self._dispatcher = Dispatcher(
            model_loader(model, "model"),
            batch_size=batch_size,
            max_tokens=max_tokens,
            max_wait_time=max_wait_time,
            max_queue=max_queue,
            timeout=timeout,
            workers=workers,
            cache_bytes=int(cache_mb * _MIB),
        )
        self._queued = QueuedCalls(self._dispatcher, batch_size, max_queue)
        self._direct = DirectCalls(self._dispatcher, batch_size)
        finalizer = weakref.finalize(self, _close_in_background, self._dispatcher)
        finalizer.atexit = False  # the dispatchers close themselves then

    @classmethod
    def from_config(
        cls, path: str | os.PathLike[str] | None = None, **arguments: Any
    ) -> BatchEmbeddingProcessor:
        """Make a processor from a file that ``ai-model-optimizations tune`` wrote.

        Parameters
        ----------
        path
            A TOML file. None takes the one that ``AIMO_CONFIG`` names, or the defaults if it is not
            set.
        **arguments
            Arguments of the class that take precedence over the file.

        Raises
        ------
        OSError, ValueError
            If the file cannot be read, or a key in it is unknown or of the wrong type.
        """
        settings = read_settings(path)
        settings.apply_threads()
        load = functools.partial(load_by_name, settings.model, settings.dtype)
        return cls(**{"model": load, **settings.batching, **arguments})

    # ---- embedding ----

    async def embed(self, text: str, *, priority: Priority = "normal") -> NDArray[np.float32]:
        """Embed one text.

        Returns
        -------
        (dim,) float32

        Raises
        ------
        TypeError
            If `text` is not a string.
        QueueFull, ClosedError
            If the queue is full, or the processor is closed.
        TimeoutError
            If no vector arrives for `timeout` seconds.
        Exception
            Whatever the model raised for this text.
        """
        self._check_text(text)
        vectors = await self._embed_all([text], priority)
        return cast("NDArray[np.float32]", vectors[0])

    async def process_batch(
        self,
        texts: Sequence[str],
        *,
        priority: Priority = "normal",
        progress: Callable[[int, int], object] | None = None,
    ) -> NDArray[np.float32]:
        """Embed many texts, together with those of other callers.

        Parameters
        ----------
        texts
            Any number of texts; a long sequence is fed to the queue piece by piece.
        priority
            "high", "normal" or "low"; they are served in the ratio 16 : 4 : 1 when all are waiting.
        progress
            Called with (texts done, total texts) after each piece.

        Returns
        -------
        (len(texts), dim) float32, in the order of `texts`

        Raises
        ------
        TypeError
            If `texts` is not a sequence of strings; the message names the first bad element.
        QueueFull, ClosedError, TimeoutError, Exception
            As :meth:`embed`; the first text that fails fails the call.
        """
        checked = self._as_list(texts)
        for start in range(0, len(checked), _CHECKED_AT_ONCE):
            if start:
                await asyncio.sleep(0)
            self._check_texts(checked, start)
        return await self._embed_all(checked, priority, progress)

    def embed_sync(self, text: str, *, priority: Priority = "normal") -> NDArray[np.float32]:
        """As :meth:`embed`, errors included, for callers without an event loop; blocks."""
        self._check_text(text)
        vectors = self._embed_all_sync([text], priority)
        return cast("NDArray[np.float32]", vectors[0])

    def embed_here(self, text: str) -> NDArray[np.float32] | None:
        """Embed one text immediately, in the calling thread, without queueing.

        For a caller inside an event loop that cannot await; it blocks for this text alone. Loads
        the model if that has not happened yet.

        Returns
        -------
        (dim,) float32; None if the model cannot be called from several threads at once. An
        EmbeddingModel can.

        Raises
        ------
        TypeError, ClosedError, Exception
            As :meth:`embed`.
        """
        self._check_text(text)
        return self._direct.encode_one(text)

    def process_batch_sync(
        self,
        texts: Sequence[str],
        *,
        priority: Priority = "normal",
        progress: Callable[[int, int], object] | None = None,
    ) -> NDArray[np.float32]:
        """As :meth:`process_batch`, errors included, for callers without an event loop; blocks."""
        checked = self._as_list(texts)
        self._check_all(checked)
        return self._embed_all_sync(checked, priority, progress)

    # ---- state ----

    async def warmup(self) -> None:
        """Load the model and run a full batch, so that the first caller need not wait for it."""
        await self._embed_all(self._warm_up_texts(), "high", expires=False)

    def warmup_sync(self) -> None:
        """As :meth:`warmup`; blocks the thread."""
        self._embed_all_sync(self._warm_up_texts(), "high", expires=False)

    def ready(self) -> bool:
        """Whether the model is loaded and the processor accepts work."""
        return self._dispatcher.engine is not None and not self._dispatcher.closing

    @property
    def space_id(self) -> str | None:
        """The space of the vectors; None before the model is loaded or when it does not say."""
        engine = self._dispatcher.engine
        return None if engine is None else engine.space_id

    @property
    def dimension(self) -> int | None:
        """The vectors' dimension; None before the model is known."""
        engine = self._dispatcher.engine
        return None if engine is None else engine.dimension

    def metrics(self) -> dict[str, Any]:
        """Return counts, rates and latency quantiles as plain numbers, ready for JSON.

        Tokens are estimates, corrected by the model's own counts where it offers them.
        """
        dispatcher = self._dispatcher
        cache = dispatcher.cache
        return {
            **dispatcher.metrics.snapshot(),
            "queue_texts": dispatcher.waiting_texts,
            "queue_tokens": dispatcher.waiting_tokens,
            "running_texts": dispatcher.running_texts,
            "ready": self.ready(),
            "cache": {
                "entries": len(cache),
                "bytes": cache.bytes,
                "max_bytes": cache.max_bytes,
                "hits": cache.hits,
                "misses": cache.misses,
            },
        }

    def prometheus_collector(self, **labels: str) -> PrometheusCollector:
        """Return a collector of this processor alone, for ``REGISTRY.register``.

        Several such collectors in one registry repeat the HELP and TYPE lines of their families,
        which strict parsers refuse; processors registered by `register_prometheus` share them.

        Parameters
        ----------
        labels : put on every sample, for example ``model="minilm"``
        """
        return PrometheusCollector(functools.partial(self._prometheus_families, labels))

    def register_prometheus(
        self, registry: CollectorRegistry | None = None, /, **labels: str
    ) -> None:
        """Export the metrics through a registry, for as long as the processor is alive.

        Parameters
        ----------
        registry : the default one of ``prometheus_client`` unless one is given
        labels : put on every sample, for example ``model="minilm"``; the processor replaces
            another with the same labels
        """
        register(
            registry,
            "processor",
            labels,
            self,
            lambda processor: processor._prometheus_families(labels),
        )

    def clear_cache(self) -> None:
        """Forget the vectors of exact texts."""
        self._dispatcher.cache.clear()

    async def aclose(self, *, drain: bool = True, timeout: float | None = 30.0) -> None:
        """As :meth:`close`, without blocking the event loop."""
        close = functools.partial(self.close, drain=drain, timeout=timeout)
        # A thread of its own: the loop's executor may be full of callers waiting for answers.
        closed: concurrent.futures.Future[None] = concurrent.futures.Future()

        def run() -> None:
            try:
                closed.set_result(close())
            except BaseException as error:
                closed.set_exception(error)

        threading.Thread(target=run, name="aimo-batch-close", daemon=True).start()
        await asyncio.wrap_future(closed)

    def close(self, *, drain: bool = True, timeout: float | None = 30.0) -> None:
        """Refuse further work and end the threads; harmless when repeated.

        Parameters
        ----------
        drain
            Answer waiting callers first; otherwise they get ClosedError.
        timeout
            Seconds for all of it; callers still waiting then get ClosedError.
        """
        self._dispatcher.close(drain=drain, timeout=timeout)

    def __enter__(self) -> BatchEmbeddingProcessor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(drain=error is None)

    async def __aenter__(self) -> BatchEmbeddingProcessor:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose(drain=error is None)

    # ---- running a call ----

    async def _embed_all(
        self,
        texts: list[str],
        priority: Priority,
        progress: Callable[[int, int], object] | None = None,
        *,
        expires: bool = True,
    ) -> NDArray[np.float32]:
        self._check_priority(priority)
        if self._bypass:
            return await self._direct.encode(texts, self.timeout if expires else None)
        if not texts:
            if self.dimension is None:
                await self._queued.encode([_WARM_UP_TEXT], priority, None, expires=expires)
            return np.empty((0, cast(int, self.dimension)), np.float32)
        return await self._queued.encode(texts, priority, progress, expires=expires)

    def _embed_all_sync(
        self,
        texts: list[str],
        priority: Priority,
        progress: Callable[[int, int], object] | None = None,
        *,
        expires: bool = True,
    ) -> NDArray[np.float32]:
        self._check_priority(priority)
        if self._bypass:
            return self._direct.encode_sync(texts)
        if not texts:
            if self.dimension is None:
                self._queued.encode_sync([_WARM_UP_TEXT], priority, None, expires=expires)
            return np.empty((0, cast(int, self.dimension)), np.float32)
        return self._queued.encode_sync(texts, priority, progress, expires=expires)

    def _warm_up_texts(self) -> list[str]:
        return [f"{i} {_WARM_UP_TEXT}" for i in range(self.batch_size)]

    # ---- checks ----

    def _check_priority(self, priority: object) -> None:
        if priority not in PRIORITY_SHARES:
            self._refuse()
            raise ValueError(
                f"priority: expected one of {', '.join(PRIORITY_SHARES)}, got {priority!r}"
            )

    def _check_text(self, text: object) -> None:
        if not isinstance(text, str):
            self._refuse()
            raise TypeError(f"text: expected str, got {type(text).__name__}")

    def _as_list(self, texts: object) -> list[str]:
        if isinstance(texts, (str, bytes)) or not isinstance(texts, (Sequence, np.ndarray)):
            self._refuse()
            hint = "; use embed() for one text" if isinstance(texts, str) else ""
            raise TypeError(
                f"texts: expected a sequence of strings, got {type(texts).__name__}{hint}"
            )
        if isinstance(texts, np.ndarray) and texts.ndim != 1:
            self._refuse()
            raise TypeError(f"texts: expected an array of one dimension, got {texts.ndim}")
        return list(texts)  # the caller may change its own while we work

    def _check_all(self, texts: list[str]) -> None:
        for start in range(0, len(texts), _CHECKED_AT_ONCE):
            self._check_texts(texts, start)

    def _check_texts(self, texts: list[str], start: int) -> None:
        part = texts[start : start + _CHECKED_AT_ONCE]
        if set(map(type, part)) <= {str}:
            return
        for i, text in enumerate(part, start):
            if not isinstance(text, str):
                self._refuse()
                raise TypeError(f"texts[{i}]: expected str, got {type(text).__name__}")

    def _refuse(self) -> None:
        self._dispatcher.metrics.refused("validation")

    def _prometheus_families(self, labels: Mapping[str, str]) -> Iterable[Any]:
        dispatcher = self._dispatcher
        gauges = {
            "queue_size": ("Texts that wait", float(dispatcher.waiting_texts)),
            "queue_tokens": ("Tokens that wait", float(dispatcher.waiting_tokens)),
            "vector_cache_bytes": ("Bytes of cached vectors", float(dispatcher.cache.bytes)),
        }
        return dispatcher.metrics.prometheus(gauges, labels)


def _close_in_background(dispatcher: Dispatcher) -> None:
    """Close without taking the lock here: a finalizer may run in a thread that holds it."""
    close = functools.partial(dispatcher.close, drain=False, timeout=1.0)
    # If no more threads can be started, those of the dispatcher stay, idle, until the exit.
    with contextlib.suppress(RuntimeError):
        threading.Thread(target=close, name="aimo-batch-close", daemon=True).start()
