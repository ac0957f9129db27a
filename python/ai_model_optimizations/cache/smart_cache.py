"""SmartCache: answers by meaning, looked up exactly, in contexts that are walls."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import wraps
from itertools import chain
from types import TracebackType
from typing import Any, Literal, ParamSpec, TypeVar, cast, overload

import numpy as np
from numpy.typing import NDArray

from ..errors import CacheFileError
from .cache_base import DEFAULT, CacheBase, _Default
from .contexts import Context, ContextKey
from .entry_table import Record
from .file_format import (
    CLEARED,
    END,
    ENTRIES,
    REMOVED,
    SETTINGS,
    Frame,
    decode_entries,
    encode_entries,
    encode_json,
)
from .results import CacheHit
from .storage import (
    CacheStore,
    LoadReport,
    journal_frames,
    snapshot_frames,
    write_snapshot,
)
from .values import StoredValue, decode_value, encode_value
from .vectors import EmbeddingLike, check_space

P = ParamSpec("P")
T = TypeVar("T")

# Above this a lookup may take long enough to be felt by an event loop.
_INLINE_ENTRIES = 50_000
# Entries per lock and per frame of a snapshot.
_BLOCK = 512


class SmartCache(CacheBase):
    """A semantic cache: stores answers under the meaning of their questions.

    Lookup is exact: every entry of the context whose cosine with the question reaches the
    threshold is found and none below it. All methods may be called from any thread and any event
    loop. With ``AIMO_DISABLE=cache`` in the environment every lookup misses and nothing is stored;
    ``AIMO_DISABLE=guard`` turns guards off.

    Parameters
    ----------
    capacity : most entries
    threshold : cosine similarity in [-1, 1] from which an entry answers; see `calibrate`
    ttl : seconds an entry lives, None for ever
    max_bytes : most bytes of vectors, texts and values together
    policy : who leaves when it is full: "lfu" with ageing, "lru", or "cost", which weighs cost
        and use against size
    embedder : turns texts into vectors: an ``EmbeddingModel``, anything with ``encode(texts)``, or
        a function of a list of texts
    guard : refuses hits whose questions differ in what similarity does not see: "auto" for numbers,
        units, dates, negation, opposites and names in English and Turkish; None; or callables
        ``(question, candidate) -> reason or None``
    require_context : refuse calls that do not say whose entries are meant
    mode : "shadow" counts and remembers what it would have answered, and answers nothing
    sliding : whether a hit starts the time to live anew; by default it does not
    serializer : ``dumps`` and ``loads`` for values that are not bytes, str or JSON
    row_dtype : "f16", or "int8" for half the memory; either way lookup is exact against what is
        stored
    space_id : the embedding space, where neither embedder nor embeddings carry one
    normalize : the form in which two texts are the same question
    context_stats : keep counters per context
    keep_last : how many rejections and shadow hits are remembered
    clock : seconds that never run back

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

    # Class attributes, so that only caches with files pay for them.
    _store: CacheStore | None = None
    #: What `load` or `open` found; None for a cache that was not read from files.
    load_report: LoadReport | None = None

    # -- computing --------------------------------------------------------------------------

    def get_or_compute(
        self,
        query: str,
        fn: Callable[[str], T],
        *,
        embedding: EmbeddingLike | None = None,
        threshold: float | None = None,
        context: Context = "",
        ttl: float | _Default | None = DEFAULT,
        tags: Iterable[str] = (),
        source: str | None = None,
        cost: float | None = None,
    ) -> T:
        """Return the cached answer to `query`, or compute ``fn(query)`` and store it.

        However many threads and event loops ask the same question of one context at once, it is
        embedded and computed once, and all get the outcome, an exception too (which is not
        stored). Blank questions are computed and not stored.

        Parameters
        ----------
        embedding : of the question; without it the embedder is used
        cost : what computing costs; the seconds it took by default
        threshold, context, ttl, tags, source : as in `get_semantic_similar` and `put`
        """
        start = time.perf_counter_ns()
        text_key, key, limit = self._normalize(self._text(query)), self._key(context), threshold
        if self._disabled or not text_key:
            self._finder.miss(start, key)
            return fn(query)
        found = self._find_first(text_key, query, key, start)
        if found is not None:
            return cast(T, found.value)
        own: list[T] = []

        def lead() -> StoredValue:
            stored = self._stored_meanwhile(text_key, key)
            if stored is not None:
                return stored
            vector = self._embedding_of(query, embedding)
            hit = self._search_for(vector, key, limit, query, start)
            if hit is not None:
                return encode_value(hit.value, self._serializer)
            began = time.perf_counter()
            own.append(fn(query))
            price = time.perf_counter() - began if cost is None else cost
            record = self._record(own[0], query, context, ttl, tags, source, price)
            self._store_computed(record, vector)
            return record.value

        stored = self._flights.run((key, text_key), lead)
        return own[0] if own else cast(T, decode_value(stored, self._serializer))

    async def aget_or_compute(
        self,
        query: str,
        fn: Callable[[str], Awaitable[T]] | Callable[[str], T],
        *,
        embedding: EmbeddingLike | None = None,
        threshold: float | None = None,
        context: Context = "",
        ttl: float | _Default | None = DEFAULT,
        tags: Iterable[str] = (),
        source: str | None = None,
        cost: float | None = None,
    ) -> T:
        """`get_or_compute` for an event loop; `fn` may be a coroutine function or a function.

        A function and the embedder run in a thread. A caller who is cancelled leaves the
        computation running for the others who wait for it.
        """
        start = time.perf_counter_ns()
        text_key, key, limit = self._normalize(self._text(query)), self._key(context), threshold
        if self._disabled or not text_key:
            self._finder.miss(start, key)
            return cast(T, await _call(fn, query))
        found = self._find_first(text_key, query, key, start)
        if found is not None:
            return cast(T, found.value)
        own: list[T] = []

        async def lead() -> StoredValue:
            stored = self._stored_meanwhile(text_key, key)
            if stored is not None:
                return stored
            vector = await asyncio.to_thread(self._embedding_of, query, embedding)
            hit = await asyncio.to_thread(self._search_for, vector, key, limit, query, start)
            if hit is not None:
                return encode_value(hit.value, self._serializer)
            began = time.perf_counter()
            own.append(await _call(fn, query))
            price = time.perf_counter() - began if cost is None else cost
            record = self._record(own[0], query, context, ttl, tags, source, price)
            await asyncio.to_thread(self._store_computed, record, vector)
            return record.value

        stored = await self._flights.run_async((key, text_key), lead)
        return own[0] if own else cast(T, decode_value(stored, self._serializer))

    def _find_first(
        self, text_key: str, query: str, key: ContextKey, start: int
    ) -> CacheHit | None:
        """The same text, unless shadow mode keeps it back."""
        return None if self._shadow else self._finder.find_text(text_key, query, key, start)

    def _stored_meanwhile(self, text_key: str, key: ContextKey) -> StoredValue | None:
        """What another stored between this caller's miss and its turn to compute."""
        return None if self._shadow else self._finder.stored_text(text_key, key)

    def _embedding_of(self, query: str, embedding: EmbeddingLike | None) -> NDArray[np.float32]:
        return self._required_embedding(query) if embedding is None else self._vector(embedding)

    def _search_for(
        self,
        vector: NDArray[np.float32],
        key: ContextKey,
        threshold: float | None,
        query: str,
        start: int,
    ) -> CacheHit | None:
        limit = self._limit(threshold)
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
        ttl: float | _Default | None = DEFAULT,
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
        ttl: float | _Default | None = DEFAULT,
        tags: Iterable[str] = (),
        cost: float | None = None,
    ) -> Callable[P, T] | Callable[[Callable[P, T]], Callable[P, T]]:
        """Cache a function, or coroutine function, whose first argument is a text.

        Functions never answer for each other: the function's name is part of the context, and a
        tag for ``invalidate(tag=...)``.

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
        ttl: float | _Default | None,
        tags: Iterable[str],
        cost: float | None,
    ) -> Callable[P, T]:
        call = cast("Callable[..., Any]", function)
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError("a stream cannot be cached while it runs; put the list of its parts")
        name = f"{function.__module__}.{function.__qualname__}"
        options: dict[str, Any] = {
            "threshold": threshold,
            "ttl": ttl,
            "tags": (name, *tags),
            "source": name,
            "cost": cost,
        }

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
            async def answer_async(text: str, *args: Any, **kwargs: Any) -> Any:
                return await self.aget_or_compute(
                    text,
                    lambda query: call(query, *args, **kwargs),
                    context=context_of_call(text, *args, **kwargs),
                    **options,
                )

            return cast("Callable[P, T]", answer_async)

        @wraps(function)
        def answer(text: str, *args: Any, **kwargs: Any) -> Any:
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

    # -- files ------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the entries to one file, which replaces `path` whole or not at all.

        The file is readable by its owner only. It is a copy: what is invalidated later stays in
        it. Use `open` for files that follow the cache.
        """
        write_snapshot(os.fspath(path), self._snapshot(0))

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        damaged: Literal["raise", "keep"] = "raise",
        **options: Any,
    ) -> SmartCache:
        """Make a cache of a file that `save` wrote.

        Parameters
        ----------
        damaged : "keep" takes what can be read of a damaged file and says the rest in
            ``load_report``; "raise" refuses it, and the error says what could be read
        options : as in the constructor; what was saved holds where they are silent

        Raises
        ------
        CacheFileError
            If the file is damaged or none of ours.
        SpaceMismatchError
            If its vectors are not of the embedder's model.
        """
        return cls._read(os.fspath(path), lambda first: [], damaged, options)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        fsync_every: int = 1,
        damaged: Literal["raise", "keep"] = "raise",
        **options: Any,
    ) -> SmartCache:
        """Make a cache that lives in a file: it reads what is there and writes what changes.

        Every put and removal is in the journal beside `path` before the call returns, so a killed
        process loses none; a machine that loses power, at most `fsync_every`. Use it as a context
        manager or call `close`.

        Parameters
        ----------
        fsync_every : records between two forced writes to disk; 1 waits for the disk in each put
        damaged, options : as in `load`

        Raises
        ------
        BlockingIOError
            If another cache or process has it open.
        """
        store = CacheStore(os.fspath(path), fsync_every)
        try:
            if os.path.exists(store.path) or store.journals_since(0):
                cache = cls._read(store.path, store.journals_since, damaged, options)
            else:
                cache = cls(**options)
            cache._start_store(store)
        except BaseException:
            store.close()
            raise
        return cache

    def checkpoint(self) -> None:
        """Rewrite the file of an opened cache and start its journal anew."""
        store = self._opened()
        with store.checkpoint_lock:
            self._write_checkpoint(store)

    def close(self) -> None:
        """Let go of the files of an opened cache; putting raises `ClosedError` from then on."""
        if self._store is not None:
            self._store.close()

    def __enter__(self) -> SmartCache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _opened(self) -> CacheStore:
        if self._store is None:
            raise ValueError("this cache has no file; make it with SmartCache.open")
        return self._store

    def _start_store(self, store: CacheStore) -> None:
        self._store = store
        self._write_checkpoint(store)

    def _write_checkpoint(self, store: CacheStore) -> None:
        with self._lock:
            number = store.rotate()
            frames = self._snapshot(number, locked=True)
        store.replace(frames, number)

    def _insert(self, record: Record, vector: NDArray[np.float32], space: str | None) -> int:
        known = self._space_id
        entry = super()._insert(record, vector, space)
        if self._store is not None:
            if self._space_id != known:
                self._store.append(encode_json(SETTINGS, self._settings(0)))
            self._store.append(self._encode([entry & 0xFFFFFFFF]))
        return entry

    def _after_put(self) -> None:
        super()._after_put()
        store = self._store
        if store is None:
            return
        store.sync_if_due()
        if store.checkpoint_due and store.checkpoint_lock.acquire(blocking=False):
            try:
                self._write_checkpoint(store)
            finally:
                store.checkpoint_lock.release()

    def invalidate(
        self,
        *,
        context: Context | None = None,
        tag: str | None = None,
        prefix: Context | None = None,
        entry: int | CacheHit | None = None,
        erase: bool = True,
    ) -> int:
        """Remove the entries that meet all given conditions; return how many.

        Parameters
        ----------
        context : entries of this context
        tag : entries stored with this tag
        prefix : entries whose context begins so: a string context with a string, a tuple with the
            items of a tuple, such as all conversations of one tenant
        entry : one entry, by the name that `put` or a hit gave, or the hit itself
        erase : whether the files of an opened cache are rewritten, so that no byte of the entries
            is left in them. Without it they are marked as removed, which is cheaper; they do not
            come back either way.
        """
        removed = super().invalidate(context=context, tag=tag, prefix=prefix, entry=entry)
        if removed and self._store is not None:
            self._store.sync()
            if erase:
                self.checkpoint()
        return removed

    def clear(self) -> None:
        """Remove every entry, from the files too; the counters stay."""
        with self._lock:
            self._clear()
            if self._store is not None:
                self._store.append(encode_json(CLEARED, None))
        if self._store is not None:
            self.checkpoint()

    def _on_removed(self, slot: int, reason: str) -> None:
        if self._store is not None and reason == "invalidated":
            self._store.append(encode_json(REMOVED, [self._table.serial[slot]]))
        super()._on_removed(slot, reason)

    def _settings(self, journal: int) -> dict[str, Any]:
        table = self._table
        return {
            "journal": journal,
            "space_id": self._space_id,
            "options": {
                "capacity": table.capacity,
                "threshold": self._threshold,
                "ttl": None if self._ttl == float("inf") else self._ttl,
                "max_bytes": table.max_bytes,
                "policy": table.policy,
                "sliding": self._sliding,
                "row_dtype": table.row_dtype,
            },
        }

    def _encode(self, slots: Sequence[int]) -> bytes:
        """A frame of the entries in `slots`; called with the lock held."""
        table = self._table
        assert table.index is not None
        vectors = np.stack([table.index.vector(slot) for slot in slots])
        dtype = "<f2" if table.row_dtype == "f16" else "<f4"
        records = [table.record(slot) for slot in slots]
        return encode_entries(records, vectors, dtype, time.time() - self._clock())

    def _snapshot(self, journal: int, locked: bool = False) -> Iterator[bytes]:
        """Frames of the entries of this moment; the lock is held for a block at a time."""
        if not locked:
            with self._lock:
                return self._snapshot(journal, locked=True)
        settings = encode_json(SETTINGS, self._settings(journal))
        return self._blocks(settings, [self._table.entry_id(slot) for slot in self._table.slots()])

    def _blocks(self, settings: bytes, entries: Sequence[int]) -> Iterator[bytes]:
        yield settings
        written = 0
        for start in range(0, len(entries), _BLOCK):
            with self._lock:
                # Entries that left since are skipped; those that came are in the next journal.
                living = map(self._table.slot_of_entry, entries[start : start + _BLOCK])
                slots = [slot for slot in living if slot is not None]
                frame = self._encode(slots) if slots else b""
            written += len(slots)
            yield frame
        yield encode_json(END, {"entries": written})

    @classmethod
    def _read(
        cls,
        path: str,
        journals_since: Callable[[int], list[str]],
        damaged: Literal["raise", "keep"],
        options: dict[str, Any],
    ) -> SmartCache:
        """A cache of a snapshot, if there is one, and the journals that count after it."""
        if damaged not in ("raise", "keep"):
            raise ValueError(f'damaged must be "raise" or "keep", got {damaged!r}')
        report = LoadReport()
        settings: dict[str, Any] = {"journal": 0, "space_id": None, "options": {}}
        pending: list[Frame] = []
        frames: Iterator[Frame] = iter(())
        if os.path.exists(path) or not journals_since(0):
            frames = snapshot_frames(path, report)
            first = next(frames, None)
            if first is not None and first.kind == SETTINGS:
                settings = json.loads(first.payload)
            elif first is not None:
                pending.append(first)
        cache = cls(**{**settings["options"], **options})
        cache._space_id = check_space(cache._space_id, settings["space_id"], f"{path}")
        journals = (
            journal_frames(journal, report) for journal in journals_since(settings["journal"])
        )
        slots: dict[int, int] = {}
        for frame in chain(pending, frames, chain.from_iterable(journals)):
            cache._replay(frame, slots, report)
        cache._table.sweep(cache._clock())
        CacheBase._after_put(cache)
        cache._metrics.reset()
        report.entries = len(cache._table)
        if report.damage and damaged == "raise":
            raise CacheFileError(f"{report}; damaged='keep' loads what can be read")
        cache.load_report = report
        return cache

    def _replay(self, frame: Frame, slots: dict[int, int], report: LoadReport) -> None:
        """Do again what a frame says; `slots` finds entries by the serial they had in the files."""
        table = self._table
        if frame.kind == ENTRIES:
            records, vectors = decode_entries(frame.payload, self._clock() - time.time())
            for record, vector in zip(records, vectors, strict=True):
                try:
                    slots[record.serial] = table.insert(record, vector)
                except ValueError:  # larger than this cache allows
                    report.dropped += 1
        elif frame.kind == REMOVED:
            for serial in json.loads(frame.payload):
                slot = slots.get(serial)
                if slot is not None and table.serial[slot] == serial:
                    table.remove(slot, "invalidated")
        elif frame.kind == CLEARED:
            table.clear()
        elif frame.kind == SETTINGS:
            self._space_id = check_space(
                self._space_id, json.loads(frame.payload)["space_id"], "the journal"
            )


async def _call(fn: Callable[[str], Any], query: str) -> Any:
    """Await a coroutine function; run any other in a thread."""
    if inspect.iscoroutinefunction(fn):
        return await fn(query)
    result = await asyncio.to_thread(fn, query)
    # A lambda or partial over a coroutine function only shows by what it returns.
    return await result if inspect.isawaitable(result) else result
