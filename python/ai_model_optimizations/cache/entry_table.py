"""The entries of a cache, by slot: their columns, and the lookups and orders kept over them.

The index in C holds the vectors and assigns slot numbers; this table holds everything else under
the same number, in columns, so that a million entries are a dozen arrays and not a million objects.
It keeps index, texts, contexts, tags, expiry and eviction in step: only `insert` and `remove`
change any of them, and both change all of them.

Nothing here locks. `SmartCache` holds its lock around every call except `index.search`.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .._core import EmbeddingIndex
from .contexts import Context, ContextKey, context_from_key, has_prefix
from .eviction import Eviction
from .expiry import Expiry
from .index_device import IndexDevice
from .slot_lists import SlotLists
from .values import StoredValue, value_bytes

#: Bytes of an entry beyond its row in the index, its text and its value: the columns.
COLUMN_BYTES = 140
#: A text is also a key of the dictionary of exact texts.
_TEXT_BYTES = 180

#: The context id that no entry has.
NO_CONTEXT = 0


@dataclass(slots=True)
class Record:
    """An entry without its vector, on its way into or out of the table."""

    value: StoredValue
    query: str | None
    text_key: str | None
    context: ContextKey
    created: float
    expires: float
    ttl: float
    cost: float
    tags: tuple[str, ...]
    source: str | None
    hits: int = 0
    serial: int = 0


def row_bytes(dimension: int, row_dtype: str) -> int:
    """Return the bytes that the index needs per row: the row, its head and its bookkeeping."""
    return dimension * (1 if row_dtype == "int8" else 2) + 96


def record_bytes(record: Record) -> int:
    """Return the bytes that a record occupies in addition to its row in the index."""
    size = COLUMN_BYTES + value_bytes(record.value)
    if record.query is not None:
        size += sys.getsizeof(record.query) + _TEXT_BYTES
        if record.text_key != record.query:
            size += sys.getsizeof(record.text_key)
    if record.tags or record.source is not None:
        size += sys.getsizeof(record.tags) + sys.getsizeof(record.source) + 64
    return size


class EntryTable:
    """Entries by slot, and the lookups and orders kept over them.

    Parameters
    ----------
    capacity, max_bytes : limits that `make_room` enforces
    policy : see `Eviction`
    row_dtype : "f16" or "int8", how the index stores a row
    on_removed : called with each slot that is removed and the reason, before its columns change
    device : makes the index
    """

    def __init__(
        self,
        capacity: int,
        max_bytes: int,
        policy: str,
        row_dtype: str,
        on_removed: Callable[[int, str], None],
        device: IndexDevice,
    ) -> None:
        self.capacity = capacity
        self.max_bytes = max_bytes
        self.policy = policy
        self.row_dtype = row_dtype
        self._on_removed = on_removed
        self._device = device
        #: Serial of the newest entry; it never falls, not even when the table is cleared.
        self.last_serial = 0
        self._last_context = NO_CONTEXT
        self.clear()

    def clear(self) -> None:
        """Forget every entry, and the dimension."""
        self.index: EmbeddingIndex | None = None
        self.dimension: int | None = None
        self.bytes = 0
        self.count = 0
        self.serial = array("q")  # 0 where the slot is free
        self.created = array("d")
        self.expires = array("d")
        self.ttl = array("d")
        self.cost = array("d")
        self.hits = array("q")
        self.weight = array("q")
        self.value: list[StoredValue | None] = []
        self.query: list[str | None] = []
        self._text_key: list[str | None] = []
        self._labels: list[tuple[tuple[str, ...], str | None] | None] = []
        self._slot_of_text: dict[tuple[int, str], int] = {}
        self._slots_of_tag: dict[str, set[int]] = {}
        #: Ids are never used twice, so a stale one finds nothing rather than another tenant.
        self.context_ids: dict[ContextKey, int] = {}
        self._context_keys: dict[int, ContextKey] = {}
        self._by_context = SlotLists()
        self._eviction = Eviction(self.policy)
        self._expiry = Expiry()

    def __len__(self) -> int:
        return self.count

    # -- reading ----------------------------------------------------------------------------

    def slot_of_text(self, context: ContextKey, text_key: str) -> int | None:
        """Return the slot of an exact text in a context."""
        return self._slot_of_text.get((self.context_ids.get(context, NO_CONTEXT), text_key))

    def context_key(self, slot: int) -> ContextKey:
        """Return the key of the context that an entry belongs to."""
        return self._context_keys[self._by_context.of[slot]]

    def context(self, slot: int) -> Context:
        """Return the context that an entry belongs to, as the user gave it."""
        return context_from_key(self.context_key(slot))

    def labels(self, slot: int) -> tuple[tuple[str, ...], str | None]:
        """Return the tags and the source of an entry."""
        return self._labels[slot] or ((), None)

    def entry_id(self, slot: int) -> int:
        """Return the public id of an entry; no later entry of this slot has the same."""
        return self.serial[slot] << 32 | slot

    def slot_of_entry(self, entry_id: int) -> int | None:
        """Return the slot of a public id; None when the entry is gone."""
        slot = entry_id & 0xFFFFFFFF
        if slot < len(self.serial) and self.serial[slot] == entry_id >> 32 > 0:
            return slot
        return None

    def slots(self) -> list[int]:
        """Return every slot in use."""
        slots: list[int] = np.flatnonzero(np.frombuffer(self.serial, np.int64)).tolist()
        return slots

    def entry_ids(self) -> list[int]:
        """Return the public id of every entry."""
        serials = np.frombuffer(self.serial, np.int64)
        slots = np.flatnonzero(serials)
        pairs = zip(serials[slots].tolist(), slots.tolist(), strict=True)
        return [serial << 32 | slot for serial, slot in pairs]

    def slots_of(
        self,
        context: ContextKey | None = None,
        tag: str | None = None,
        prefix: ContextKey | None = None,
        entry: int | None = None,
    ) -> list[int]:
        """Return the slots that meet every given condition."""
        found: set[int] | None = None
        for condition in (
            None if context is None else self._slots_of_context(context),
            None if tag is None else self._slots_of_tag.get(tag, ()),
            None if prefix is None else self._slots_of_prefix(prefix),
            None if entry is None else self._slots_of_entry(entry),
        ):
            if condition is not None:
                found = set(condition) if found is None else found.intersection(condition)
        return sorted(found or ())

    def _slots_of_context(self, context: ContextKey) -> Iterator[int]:
        return self._by_context.members(self.context_ids.get(context, NO_CONTEXT))

    def _slots_of_prefix(self, prefix: ContextKey) -> Iterator[int]:
        for key, name in self.context_ids.items():
            if has_prefix(key, prefix):
                yield from self._by_context.members(name)

    def _slots_of_entry(self, entry: int) -> tuple[int, ...]:
        slot = self.slot_of_entry(entry)
        return () if slot is None else (slot,)

    def record(self, slot: int) -> Record:
        """Return a copy of an entry."""
        value = self.value[slot]
        assert value is not None
        tags, source = self.labels(slot)
        return Record(
            value=value,
            query=self.query[slot],
            text_key=self._text_key[slot],
            context=self.context_key(slot),
            created=self.created[slot],
            expires=self.expires[slot],
            ttl=self.ttl[slot],
            cost=self.cost[slot],
            tags=tags,
            source=source,
            hits=self.hits[slot],
            serial=self.serial[slot],
        )

    def context_count(self) -> int:
        """Return how many contexts have entries."""
        return len(self.context_ids)

    # -- changing ---------------------------------------------------------------------------

    def insert(self, record: Record, vector: NDArray[np.float32]) -> int:
        """Add an entry, replacing the one with the same text in the same context.

        Raises
        ------
        ValueError
            If the entry alone exceeds `max_bytes`, or the vector is zero or not finite; the table
            is then unchanged.
        """
        weight = self.weight_of(record, vector.shape[0])
        index = self.index
        if index is None:
            index = self._device.new_index(vector.shape[0], self.row_dtype)
        context = self._require_context(record.context)
        try:
            # Raised before the row can be seen: a reader that finds a serial above the one it
            # started from knows that the slot changed hands under it.
            self.last_serial += 1
            # Before anything leaves, as it refuses a vector that is not finite.
            slot = index.add(vector, context)
        except BaseException:
            self._release_context(context)
            raise
        self.index, self.dimension = index, vector.shape[0]
        if slot >= len(self.serial):
            self._grow(max(slot + 1, len(self.serial) * 3 // 2, 64))
        # Now, so that what leaves below does not take the context's last name with it.
        self._by_context.append(context, slot)
        if record.text_key is not None:
            old = self.slot_of_text(record.context, record.text_key)
            if old is not None:
                self.remove(old, "replaced")
        self.make_room(weight)
        self._fill(slot, record, context, weight)
        return slot

    def weight_of(self, record: Record, dimension: int) -> int:
        """Return the bytes an entry counts for; ValueError if they exceed `max_bytes`."""
        weight = record_bytes(record) + row_bytes(dimension, self.row_dtype)
        if weight > self.max_bytes:
            raise ValueError(f"an entry of {weight} bytes exceeds max_bytes={self.max_bytes}")
        return weight

    def make_room(self, weight: int) -> None:
        """Evict until one more entry of `weight` bytes fits."""
        while self.count and (self.count >= self.capacity or self.bytes + weight > self.max_bytes):
            self.remove(self._eviction.victim(), "evicted")

    def remove(self, slot: int, reason: str) -> None:
        """Remove an entry from the index and from every order."""
        assert self.index is not None
        self._on_removed(slot, reason)
        self.index.remove(slot)
        context = self._by_context.of[slot]
        self._by_context.remove(slot)
        self._eviction.remove(slot)
        self._expiry.remove(slot)
        text_key = self._text_key[slot]
        if text_key is not None:
            del self._slot_of_text[context, text_key]
        for tag in self.labels(slot)[0]:
            tagged = self._slots_of_tag[tag]
            tagged.discard(slot)
            if not tagged:
                del self._slots_of_tag[tag]
        self._release_context(context)
        self.bytes -= self.weight[slot]
        self.count -= 1
        self.serial[slot] = 0
        self.value[slot] = self.query[slot] = self._text_key[slot] = self._labels[slot] = None

    def hit(self, slot: int, now: float, sliding: bool) -> None:
        """Count a hit, which renews the priority, and the expiry if `sliding`."""
        self.hits[slot] += 1
        self._eviction.touch(slot, self.hits[slot], self.cost[slot], self.weight[slot])
        if sliding:
            self.expires[slot] = now + self.ttl[slot]
            self._expiry.set(slot, self.expires[slot])

    def sweep(self, now: float, limit: int | None = None) -> int:
        """Remove expired entries, at most `limit` of them; return how many."""
        removed = 0
        if not self._expiry.is_due(now):
            return 0
        for slot in self._expiry.due(now):
            if removed == limit:
                break
            self.remove(slot, "expired")
            removed += 1
        return removed

    # -- details ----------------------------------------------------------------------------

    def _require_context(self, key: ContextKey) -> int:
        name = self.context_ids.get(key)
        if name is None:
            self._last_context += 1
            name = self.context_ids[key] = self._last_context
            self._context_keys[name] = key
        return name

    def _release_context(self, name: int) -> None:
        if name not in self._by_context:
            del self.context_ids[self._context_keys.pop(name)]

    def _grow(self, slots: int) -> None:
        more = slots - len(self.serial)
        for integers in (self.serial, self.hits, self.weight):
            integers.extend([0] * more)
        for numbers in (self.created, self.expires, self.ttl, self.cost):
            numbers.extend([0.0] * more)
        for texts in (self.value, self.query, self._text_key, self._labels):
            texts.extend([None] * more)
        for order in (self._by_context, self._eviction, self._expiry):
            order.grow(slots)

    def _fill(self, slot: int, record: Record, context: int, weight: int) -> None:
        record.serial = record.serial or self.last_serial
        self.last_serial = max(self.last_serial, record.serial)
        self.serial[slot] = record.serial
        self.created[slot] = record.created
        self.expires[slot] = record.expires
        self.ttl[slot] = record.ttl
        self.cost[slot] = record.cost
        self.hits[slot] = record.hits
        self.weight[slot] = weight
        self.value[slot] = record.value
        self.query[slot] = record.query
        self._text_key[slot] = record.text_key
        if record.tags or record.source is not None:
            self._labels[slot] = (record.tags, record.source)
        if record.text_key is not None:
            self._slot_of_text[context, record.text_key] = slot
        for tag in record.tags:
            self._slots_of_tag.setdefault(tag, set()).add(slot)
        self._eviction.touch(slot, record.hits, record.cost, weight)
        self._expiry.set(slot, record.expires)
        self.bytes += weight
        self.count += 1
