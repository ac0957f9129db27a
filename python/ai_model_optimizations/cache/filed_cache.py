"""A cache and its files: snapshots, the journal of an opened cache, and reading both again.

`storage.py` decides where bytes go and `file_format.py` what they mean; this class turns entries
into records and back, and writes each change before the call that made it returns.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import chain
from types import TracebackType
from typing import Any, Literal, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import CacheFileError
from .agreement import Agreement
from .cache_base import AT_ONCE
from .cache_writer import CacheWriter
from .contexts import Context
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
from .vectors import check_space

AnyCache = TypeVar("AnyCache", bound="FiledCache")


class FiledCache(CacheWriter):
    """Saving, loading and staying in step with a file; see `SmartCache`."""

    # Class attributes, so that only caches with files pay for them.
    _store: CacheStore | None = None
    #: What `load` or `open` found; None for a cache that was not read from files.
    load_report: LoadReport | None = None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the entries to one file, which replaces `path` whole or not at all.

        The file is readable by its owner only. It is a copy: entries invalidated later stay in it.
        Use `open` for files that follow the cache.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        write_snapshot(os.fspath(path), self._snapshot(0))

    def __getstate__(self) -> NoReturn:
        name = type(self).__name__
        raise TypeError(f"a {name} is neither pickled nor copied: save it, and load it elsewhere")

    @classmethod
    def load(
        cls: type[AnyCache],
        path: str | os.PathLike[str],
        *,
        damaged: Literal["raise", "keep"] = "raise",
        **options: Any,
    ) -> AnyCache:
        """Make a cache from a file that `save` wrote.

        Parameters
        ----------
        damaged : "keep" takes what can be read of a damaged file and reports the rest in
            ``load_report``; "raise" refuses it, and the error says what could be read
        options : as in the constructor; options that are not given are those that were saved

        Raises
        ------
        CacheFileError
            If the file is damaged, or not a cache file.
        SpaceMismatchError
            If its vectors are not of the embedder's model.
        """
        return cls._read(os.fspath(path), lambda first: [], damaged, options)

    @classmethod
    def open(
        cls: type[AnyCache],
        path: str | os.PathLike[str],
        *,
        fsync_every: int = 1,
        damaged: Literal["raise", "keep"] = "raise",
        **options: Any,
    ) -> AnyCache:
        """Make a cache that is kept in a file: it reads the existing entries and writes changes.

        Every put and removal is in the journal beside `path` before the call returns, so a killed
        process loses nothing, and a power failure at most `fsync_every` records. Use the cache as a
        context manager or call `close`.

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
        """Rewrite the file of an opened cache and start a new journal.

        Raises
        ------
        ValueError
            If the cache was not made by `open`.
        ClosedError
            If it is closed.
        OSError
            If the file cannot be written.
        """
        store = self._opened()
        with store.checkpoint_lock:
            if store.writable:
                self._write_checkpoint(store)

    def close(self) -> None:
        """Close the files of an opened cache; changing it raises `ClosedError` from then on."""
        if self._store is not None:
            with self._store.checkpoint_lock:
                self._store.close()

    def __enter__(self: AnyCache) -> AnyCache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        """Raise ClosedError before a change that could not be written to the files."""
        if self._store is not None:
            _ = self._store.writable

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
        self._check_open()
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
                if store.checkpoint_due:
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
        prefix : entries whose context begins with this: a string, or the leading items of a tuple,
            such as all conversations of one tenant
        entry : one entry, by the id that `put` returned or a hit carries, or the hit itself
        erase : whether the files of an opened cache are rewritten, so that no byte of the entries
            is left in them. Otherwise they are only marked as removed, which is cheaper; they do
            not come back either way.

        Raises
        ------
        TypeError
            If a condition has the wrong type.
        ValueError
            If no condition is given.
        ClosedError
            If the cache was made by `open` and is closed.
        """
        self._check_open()
        removed = super().invalidate(context=context, tag=tag, prefix=prefix, entry=entry)
        if removed and self._store is not None:
            self._store.sync()
            if erase:
                self.checkpoint()
        return removed

    def clear(self) -> None:
        """Remove every entry, from the files too; counters stay.

        Raises
        ------
        ClosedError
            If the cache was made by `open` and is closed.
        """
        self._check_open()
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
                "agreement": None if self._agreement is None else asdict(self._agreement),
            },
        }

    def _encode(self, slots: Sequence[int]) -> bytes:
        """Return a frame with the entries in `slots`; the lock must be held."""
        table = self._table
        assert table.index is not None
        vectors = np.stack([table.index.vector(slot) for slot in slots])
        dtype = "<f2" if table.row_dtype == "f16" else "<f4"
        records = [table.record(slot) for slot in slots]
        return encode_entries(records, vectors, dtype, time.time() - self._clock())

    def _snapshot(self, journal: int, locked: bool = False) -> Iterator[bytes]:
        """Yield frames with the current entries; the lock is held for a block at a time."""
        if not locked:
            with self._lock:
                return self._snapshot(journal, locked=True)
        settings = encode_json(SETTINGS, self._settings(journal))
        return self._blocks(settings, self._table.entry_ids())

    def _blocks(self, settings: bytes, entries: Sequence[int]) -> Iterator[bytes]:
        yield settings
        written = 0
        for start in range(0, len(entries), AT_ONCE):
            with self._lock:
                # Entries removed since are skipped; those added since are in the next journal.
                living = map(self._table.slot_of_entry, entries[start : start + AT_ONCE])
                slots = [slot for slot in living if slot is not None]
                frame = self._encode(slots) if slots else b""
            written += len(slots)
            yield frame
        yield encode_json(END, {"entries": written})

    @classmethod
    def _read(
        cls: type[AnyCache],
        path: str,
        journals_since: Callable[[int], list[str]],
        damaged: Literal["raise", "keep"],
        options: dict[str, Any],
    ) -> AnyCache:
        """Make a cache from a snapshot, if there is one, and the journals that follow it."""
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
        saved = settings["options"]
        if saved.get("agreement") is not None:
            saved["agreement"] = Agreement(**saved["agreement"])
        cache = cls(**{**saved, **options})
        cache._space_id = check_space(cache._space_id, settings["space_id"], f"{path}")
        journals = (
            journal_frames(journal, report) for journal in journals_since(settings["journal"])
        )
        slots: dict[int, int] = {}
        for frame in chain(pending, frames, chain.from_iterable(journals)):
            cache._replay(frame, slots, report)
        cache._table.sweep(cache._clock())
        CacheWriter._after_put(cache)
        cache._metrics.reset()
        report.entries = len(cache._table)
        if report.damage and damaged == "raise":
            raise CacheFileError(f"{report}; damaged='keep' loads what can be read")
        cache.load_report = report
        return cache

    def _replay(self, frame: Frame, slots: dict[int, int], report: LoadReport) -> None:
        """Repeat what a frame records; `slots` maps serials in the files to slots."""
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
