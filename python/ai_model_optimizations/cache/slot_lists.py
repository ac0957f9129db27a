"""Doubly linked lists threaded through slot numbers.

Every entry of the cache has a slot, and is a member of one eviction bucket, one expiry bucket and
one context. Three arrays of integers per membership keep that at 16 bytes per entry, where a dict
of objects would take about a hundred and give the garbage collector a million objects to visit.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

_NONE = -1


class SlotLists:
    """Any number of lists, each named by an integer; a slot is in one of them or in none.

    Appending, removing and taking the oldest member are O(1). An empty list costs nothing.
    """

    __slots__ = ("_first", "_next", "_previous", "of")

    def __init__(self) -> None:
        self._first: dict[int, int] = {}
        self._next = array("i")
        self._previous = array("i")
        #: The list each slot is in; -1 for none.
        self.of = array("q")

    def grow(self, slots: int) -> None:
        """Make room for slots below `slots`."""
        more = slots - len(self.of)
        if more > 0:
            self._next.extend([_NONE] * more)
            self._previous.extend([_NONE] * more)
            self.of.extend([_NONE] * more)

    def append(self, name: int, slot: int) -> None:
        """Add a slot that is in no list to the newest end of the list `name`."""
        first = self._first.setdefault(name, slot)
        # The lists are circular: the first member's previous is the last member.
        last = self._previous[first] if first != slot else slot
        self._next[last] = slot
        self._previous[slot] = last
        self._next[slot] = first
        self._previous[first] = slot
        self.of[slot] = name

    def remove(self, slot: int) -> None:
        """Remove a slot from the list it is in, if any."""
        name = self.of[slot]
        if name == _NONE:
            return
        following = self._next[slot]
        if following == slot:
            del self._first[name]
        else:
            previous = self._previous[slot]
            self._next[previous] = following
            self._previous[following] = previous
            if self._first[name] == slot:
                self._first[name] = following
        self.of[slot] = _NONE

    def oldest(self, name: int) -> int | None:
        """Return the slot at the oldest end of a list; None when it is empty."""
        return self._first.get(name)

    def __contains__(self, name: int) -> bool:
        return name in self._first

    def __len__(self) -> int:
        """Return how many lists have members."""
        return len(self._first)

    def members(self, name: int) -> Iterator[int]:
        """Yield the slots of a list, oldest first; the list must not change meanwhile."""
        first = self._first.get(name)
        if first is None:
            return
        slot = first
        while True:
            yield slot
            slot = self._next[slot]
            if slot == first:
                return
