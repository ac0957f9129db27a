"""When entries expire: buckets of one second, and a heap of the seconds that have members.

A lookup checks an entry's own time to the microsecond, so the buckets only decide when memory is
freed. Entries of one second share a heap element, which makes adding and removing O(1).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator

from .slot_lists import SlotLists

# From this second on an entry lives forever: lists are named by 64 bits.
_NEVER = 2.0**62


class Expiry:
    """The seconds in which slots expire."""

    def __init__(self) -> None:
        self._buckets = SlotLists()
        self._seconds: list[int] = []
        self._queued: set[int] = set()

    def grow(self, slots: int) -> None:
        """Make room for slots below `slots`."""
        self._buckets.grow(slots)

    def set(self, slot: int, expires: float) -> None:
        """Set when a slot expires; infinity is never."""
        self._buckets.remove(slot)
        if expires >= _NEVER:
            return
        second = max(math.floor(expires), 0)
        self._buckets.append(second, slot)
        if second not in self._queued:
            self._queued.add(second)
            heapq.heappush(self._seconds, second)

    def remove(self, slot: int) -> None:
        """Forget a slot."""
        self._buckets.remove(slot)

    def is_due(self, now: float) -> bool:
        """Whether `due` may have anything to yield."""
        return bool(self._seconds) and self._seconds[0] + 1 <= now

    def due(self, now: float) -> Iterator[int]:
        """Yield the slots whose second is over; each must be removed before taking the next."""
        while self.is_due(now):
            slot = self._buckets.oldest(self._seconds[0])
            if slot is None:
                self._queued.discard(heapq.heappop(self._seconds))
            else:
                yield slot
