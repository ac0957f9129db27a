"""SmartCache: a semantic cache with exact lookup and isolated contexts."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast, overload

import numpy as np
from numpy.typing import NDArray

from .._futures import for_a_future
from .cache_arguments import DEFAULT, Default
from .contexts import Context, ContextKey
from .entry_table import Record
from .filed_cache import FiledCache
from .results import CacheHit
from .values import StoredValue, UnreadableValueError, decode_value, encode_value
from .vectors import EmbeddingLike

P = ParamSpec("P")
T = TypeVar("T")

# Above this a lookup may take long enough to be felt by an event loop.
_INLINE_ENTRIES = 50_000


class SmartCache(FiledCache):
    """A semantic cache: finds the stored answer to a question of the same meaning.

    Lookup is exact: every entry of the context whose cosine similarity with the question reaches
    the threshold is found, and none below it. All methods may be called from any thread and any
    event loop. With ``AIMO_DISABLE=cache`` in the environment every lookup misses and nothing is
    stored; ``AIMO_DISABLE=guard`` turns guards off.

    Parameters
    ----------
    capacity : maximum number of entries
    threshold : cosine similarity in [-1, 1] from which an entry counts as a hit; see `calibrate`
    ttl : time to live of an entry in seconds; None keeps it forever
    max_bytes : maximum bytes of vectors, texts and values together
    policy : which entry is evicted when the cache is full: "lfu" with ageing, "lru", or "cost",
        which weighs cost and use against size
    embedder : turns texts into vectors: an ``EmbeddingModel``, anything with ``encode(texts)``, or
        a function that takes a list of texts
    guard : rejects hits whose questions differ in ways that similarity misses: "auto" for numbers,
        units, dates, negation, opposites and names in English and Turkish; None; or callables
        ``(question, candidate) -> reason or None``
    require_context : refuse calls that do not say whose entries are meant
    mode : "shadow" counts and records the hits it would have returned, but returns none
    agreement : where answers repeat, as those of static content do, decides by several of the
        nearest entries, see `Agreement`; None decides by the nearest alone
    sliding : whether a hit restarts the entry's time to live
    serializer : an object with ``dumps`` and ``loads``, for values that are not bytes, str or JSON;
        an entry whose ``loads`` raises is dropped
    row_dtype : "f16", or "int8" for half the memory; either way lookup is exact against what is
        stored
    space_id : the embedding space, if neither embedder nor embeddings carry one
    normalize : maps a text to the form by which two texts count as the same question
    context_stats : whether to keep counters per context
    keep_last : how many rejections and shadow hits are kept
    clock : returns a monotonic time in seconds
    device : "cpu"; "cuda" or "cuda:N", which searches large caches on that device, with the same
        results; "auto" for the first CUDA device if one can be used, else the CPU. Raises
        ``UnsupportedError`` if CUDA cannot be used, ``ValueError`` if the device does not exist

    Examples
    --------
    >>> import numpy as np
    >>> cache = SmartCache(threshold=0.9)
    >>> _ = cache.put(np.array([1.0, 0.0]), "Paris", query="What is the capital of France?")
    >>> hit = cache.get_semantic_similar([0.99, 0.05], query="What's the capital of France?")
    >>> hit.value, hit.guarded
    ('Paris', True)
    >>> cache.get_semantic_similar([0.99, 0.04], query="What is the capital of Spain?")
    >>> cache.rejections()[0].reason
    'entity'
    """

    # -- computing --------------------------------------------------------------------------

    def get_or_compute(
        self,
        query: str,
        fn: Callable[[str], T],
        *,
        embedding: EmbeddingLike | None = None,
        threshold: float | None = None,
        context: Context = "",
        ttl: float | Default | None = DEFAULT,
        tags: Iterable[str] = (),
        source: str | None = None,
        cost: float | None = None,
    ) -> T:
        """Return the cached answer to `query`, or compute ``fn(query)`` and store it.

        However many threads and event loops ask the same question in one context at once, it is
        embedded and computed once, and all of them get the result or the exception (which is not
        stored). A caller that waited counts as a hit of the same text. Blank questions are
        computed but not stored.

        Parameters
        ----------
        embedding : (dimension,), of the question; computed by the embedder if not given
        cost : what the computation costs; by default the seconds it took
        threshold, context, ttl, tags, source : as in `get_semantic_similar` and `put`
        """
        start = time.perf_counter_ns()
        text_key, key = self._normalize(self._text(query)), self._key(context)
        limit = self._limit(threshold)
        if self._disabled or not text_key:
            self._finder.miss(start, key)
            return fn(query)
        found = self._find_first(text_key, query, key, start)
        if found is not None:
            return cast(T, found.value)
        own: list[T] = []
        led: list[bool] = []

        def lead() -> StoredValue:
            led.append(True)
            # Another may have stored it between this caller's miss and its turn to compute.
            hit = self._find_first(text_key, query, key, start)
            if hit is not None:
                own.append(hit.value)
                return encode_value(hit.value, self._serializer)
            if inspect.iscoroutinefunction(fn):
                raise TypeError("fn is a coroutine function: await aget_or_compute instead")
            vector = self._embedding_of(query, embedding)
            hit = self._search_for(vector, key, limit, query, start)
            if hit is not None:
                own.append(hit.value)
                return encode_value(hit.value, self._serializer)
            began = time.perf_counter()
            own.append(fn(query))
            price = time.perf_counter() - began if cost is None else cost
            record = self._record(own[0], query, context, ttl, tags, source, price)
            self._store_computed(record, vector)
            return record.value

        try:
            stored = self._flights.run((key, text_key), lead)
        except BaseException:
            if not led:
                self._finder.miss(start, key)
            raise
        if led:
            return own[0]
        with suppress(UnreadableValueError):
            return cast(T, self._shared_value(stored, start, key, cost))
        return fn(query)

    @overload
    async def aget_or_compute(
        self,
        query: str,
        fn: Callable[[str], Awaitable[T]],
        *,
        embedding: EmbeddingLike | None = None,
        threshold: float | None = None,
        context: Context = "",
        ttl: float | Default | None = DEFAULT,
        tags: Iterable[str] = (),
        source: str | None = None,
        cost: float | None = None,
    ) -> T: ...

    @overload
    async def aget_or_compute(
        self,
        query: str,
        fn: Callable[[str], T],
        *,
        embedding: EmbeddingLike | None = None,
        threshold: float | None = None,
        context: Context = "",
        ttl: float | Default | None = DEFAULT,
        tags: Iterable[str] = (),
        source: str | None = None,
        cost: float | None = None,
    ) -> T: ...

    async def aget_or_compute(
        self,
        query: str,
        fn: Callable[[str], Awaitable[T]] | Callable[[str], T],
        *,
        embedding: EmbeddingLike | None = None,
        threshold: float | None = None,
        context: Context = "",
        ttl: float | Default | None = DEFAULT,
        tags: Iterable[str] = (),
        source: str | None = None,
        cost: float | None = None,
    ) -> T:
        """`get_or_compute` for an event loop; `fn` may be a coroutine function or a function.

        A plain function and the embedder run in a worker thread. Cancelling one caller leaves the
        computation running for the others that wait for it.
        """
        start = time.perf_counter_ns()
        text_key, key = self._normalize(self._text(query)), self._key(context)
        limit = self._limit(threshold)
        if self._disabled or not text_key:
            self._finder.miss(start, key)
            return cast(T, await _call(fn, query))
        found = self._find_first(text_key, query, key, start)
        if found is not None:
            return cast(T, found.value)
        own: list[T] = []
        led: list[bool] = []

        async def lead() -> StoredValue:
            led.append(True)
            hit = self._find_first(text_key, query, key, start)
            if hit is not None:
                own.append(hit.value)
                return encode_value(hit.value, self._serializer)
            vector = await _in_thread(self._embedding_of, query, embedding)
            hit = await asyncio.to_thread(self._search_for, vector, key, limit, query, start)
            if hit is not None:
                own.append(hit.value)
                return encode_value(hit.value, self._serializer)
            began = time.perf_counter()
            own.append(await _call(fn, query))
            price = time.perf_counter() - began if cost is None else cost
            record = self._record(own[0], query, context, ttl, tags, source, price)
            await asyncio.to_thread(self._store_computed, record, vector)
            return record.value

        try:
            stored = await self._flights.run_async((key, text_key), lead)
        except BaseException:
            if not led:
                self._finder.miss(start, key)
            raise
        if led:
            return own[0]
        with suppress(UnreadableValueError):
            return cast(T, self._shared_value(stored, start, key, cost))
        return cast(T, await _call(fn, query))

    def _find_first(
        self, text_key: str, query: str, key: ContextKey, start: int
    ) -> CacheHit | None:
        """The same text, unless shadow mode keeps it back."""
        return None if self._shadow else self._finder.find_text(text_key, query, key, start)

    def _shared_value(
        self, stored: StoredValue, start: int, key: ContextKey, cost: float | None
    ) -> Any:
        """Decode and count what another's computation of the same question answered.

        It waited for about the seconds that computing took, so only a cost in other units is saved.

        Raises
        ------
        UnreadableValueError
            If the serializer raises; the lookup is counted as a miss then.
        """
        try:
            value = decode_value(stored, self._serializer)
        except UnreadableValueError as error:
            self._finder.warn_unreadable(error)
            self._finder.miss(start, key)
            raise
        if self._shadow:
            self._finder.miss(start, key)
        else:
            elapsed = time.perf_counter_ns() - start
            self._metrics.hit(elapsed, key, cost or 0.0, exact=True, guarded=True)
        return value

    def _embedding_of(self, query: str, embedding: EmbeddingLike | None) -> NDArray[np.float32]:
        return self._required_embedding(query) if embedding is None else self._vector(embedding)

    def _search_for(
        self,
        vector: NDArray[np.float32],
        key: ContextKey,
        limit: float,
        query: str,
        start: int,
    ) -> CacheHit | None:
        if self._shadow:
            self._get(query, key, limit, start, vector)
            return None
        return self._finder.search(vector, key, limit, query, start)

    def _store_computed(self, record: Record, vector: NDArray[np.float32]) -> None:
        with self._lock:
            self._insert(record, vector, None)
        self._metrics.put(1)
        self._after_put()

    @overload
    def cached(self, function: Callable[P, T], /) -> Callable[P, T]: ...

    @overload
    def cached(
        self,
        function: None = None,
        /,
        *,
        context: Context | Callable[..., Context] = "",
        threshold: float | None = None,
        ttl: float | Default | None = DEFAULT,
        tags: Iterable[str] = (),
        cost: float | None = None,
    ) -> Callable[[Callable[P, T]], Callable[P, T]]: ...

    def cached(
        self,
        function: Callable[P, T] | None = None,
        /,
        *,
        context: Context | Callable[..., Context] = "",
        threshold: float | None = None,
        ttl: float | Default | None = DEFAULT,
        tags: Iterable[str] = (),
        cost: float | None = None,
    ) -> Callable[P, T] | Callable[[Callable[P, T]], Callable[P, T]]:
        """Cache a function, or coroutine function, whose first argument is a text.

        Functions never answer for each other: the function's name is part of the context, and a
        tag for ``invalidate(tag=...)``. Lambdas, inner functions and methods of objects whose name
        another has are numbered, in the order in which they come.

        Parameters
        ----------
        context : whose answers these are: a context, or a function of the call's arguments. A
            function with more arguments than the text needs the latter, as the answer may depend
            on them.
        threshold, ttl, tags, cost : as in `get_or_compute`
        """
        if function is None:

            def decorate(decorated: Callable[P, T]) -> Callable[P, T]:
                return self._decorated(decorated, context, threshold, ttl, tags, cost)

            return decorate
        return self._decorated(function, context, threshold, ttl, tags, cost)

    def _decorated(
        self,
        function: Callable[P, T],
        context: Context | Callable[..., Context],
        threshold: float | None,
        ttl: float | Default | None,
        tags: Iterable[str],
        cost: float | None,
    ) -> Callable[P, T]:
        call = cast("Callable[..., Any]", function)
        if not callable(function):
            raise TypeError(f"cached takes a function of a text, got {type(function).__name__}")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError("a stream cannot be cached while it runs; put the list of its parts")
        name = self._functions.name_of(function)
        first = _first_parameter(function)
        options: dict[str, Any] = {
            "threshold": threshold,
            "ttl": ttl,
            "tags": (name, *tags),
            "source": name,
            "cost": cost,
        }

        def text_first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
            if args:
                return args
            if first not in kwargs:
                raise TypeError(f"{name} takes a text, and was called without one")
            return (kwargs.pop(first),)

        def context_of_call(*args: Any, **kwargs: Any) -> Context:
            if callable(context):
                return (name, context(*args, **kwargs))
            if len(args) != 1 or kwargs:
                raise TypeError(
                    f"{name} was called with more than one text: its answer may depend on the "
                    "other arguments, so pass cached(context=<function of the arguments>)"
                )
            return (name, context)

        if inspect.iscoroutinefunction(function):

            @wraps(function)
            async def answer_async(*given: Any, **kwargs: Any) -> Any:
                text, *args = text_first(given, kwargs)
                return await self.aget_or_compute(
                    text,
                    lambda query: call(query, *args, **kwargs),
                    context=context_of_call(text, *args, **kwargs),
                    **options,
                )

            return cast("Callable[P, T]", answer_async)

        @wraps(function)
        def answer(*given: Any, **kwargs: Any) -> Any:
            text, *args = text_first(given, kwargs)
            return self.get_or_compute(
                text,
                lambda query: call(query, *args, **kwargs),
                context=context_of_call(text, *args, **kwargs),
                **options,
            )

        return cast("Callable[P, T]", answer)

    # -- async forms ------------------------------------------------------------------------

    async def aget_semantic_similar(
        self,
        query_embedding: EmbeddingLike,
        threshold: float | None = None,
        context: Context = "",
        query: str | None = None,
    ) -> CacheHit | None:
        """`get_semantic_similar`; in a thread once the cache is large enough to be felt."""
        if len(self._table) <= _INLINE_ENTRIES:
            return self.get_semantic_similar(query_embedding, threshold, context, query)
        return await asyncio.to_thread(
            self.get_semantic_similar, query_embedding, threshold, context, query
        )

    async def aget(
        self, text: str, threshold: float | None = None, context: Context = ""
    ) -> CacheHit | None:
        """`get`, in a thread, as it may embed."""
        return await asyncio.to_thread(self.get, text, threshold, context)

    async def aget_many(
        self,
        queries: Sequence[str] | EmbeddingLike,
        threshold: float | None = None,
        context: Context = "",
        *,
        texts: Sequence[str | None] | None = None,
    ) -> list[CacheHit | None]:
        """`get_many`, in a thread."""
        return await asyncio.to_thread(self.get_many, queries, threshold, context, texts=texts)

    async def aput(self, key: str | EmbeddingLike, value: Any, **options: Any) -> int:
        """`put`, in a thread, as it may embed and write."""
        return await asyncio.to_thread(self.put, key, value, **options)

    async def aput_many(
        self, keys: Sequence[str] | EmbeddingLike, values: Sequence[Any], **options: Any
    ) -> list[int]:
        """`put_many`, in a thread."""
        return await asyncio.to_thread(self.put_many, keys, values, **options)


def _first_parameter(function: Callable[..., Any]) -> str:
    """The name under which a call may give the text; a function of C may not tell."""
    try:
        return next(iter(inspect.signature(function).parameters), "text")
    except ValueError:
        return "text"


async def _call(fn: Callable[[str], Any], query: str) -> Any:
    """Await a coroutine function; run any other in a thread."""
    if inspect.iscoroutinefunction(fn):
        return await fn(query)
    result = await _in_thread(fn, query)
    # A lambda or partial over a coroutine function only shows by what it returns.
    return await result if inspect.isawaitable(result) else result


async def _in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """`asyncio.to_thread`, for functions that may raise StopIteration."""

    def call() -> T:
        try:
            return function(*arguments)
        except StopIteration as error:
            raise for_a_future(error) from error

    return await asyncio.to_thread(call)
