"""Which entry is evicted when the cache is full: LRU, LFU with ageing, or cost-aware, each in O(1).

All three are GreedyDual: an entry's priority is the floor plus its credit, the floor is the
priority of the entry that was evicted last, and a hit renews the priority. So credit earned long
ago loses its value as the floor rises, which is the ageing that plain LFU lacks. Credits are small
integers, so priorities are consecutive buckets and no heap is needed. LRU is the case without
credit.
"""

from __future__ import annotations

from collections.abc import Callable

from .slot_lists import SlotLists

# Bounds how long a once popular entry can outlive its popularity, and the search for a victim.
_MAX_CREDIT = 128


class Eviction:
    """The order in which slots are evicted.

    Parameters
    ----------
    policy : "lru", "lfu" or "cost"
    """

    def __init__(self, policy: str) -> None:
        credits: dict[str, Callable[[int, float, int], int]] = {
            "lru": self._no_credit,
            "lfu": self._hit_credit,
            "cost": self._cost_credit,
        }
        if policy not in credits:
            raise ValueError(f'policy must be "lru", "lfu" or "cost", got {policy!r}')
        self._credit = credits[policy]
        self._buckets = SlotLists()
        self._floor = 0
        # A running mean of cost per byte, the unit in which "cost" gives credit.
        self._unit = 0.0

    @staticmethod
    def _no_credit(hits: int, cost: float, weight: int) -> int:
        return 0

    @staticmethod
    def _hit_credit(hits: int, cost: float, weight: int) -> int:
        return min(hits + 1, _MAX_CREDIT)

    def _cost_credit(self, hits: int, cost: float, weight: int) -> int:
        worth = cost / weight
        self._unit += (worth - self._unit) * (0.01 if self._unit else 1.0)
        if self._unit <= 0.0:
            return 1
        # Four steps to the mean entry, so that half as costly is still told from a quarter.
        return int(min(max(4.0 * (hits + 1) * worth / self._unit, 1.0), _MAX_CREDIT))

    def grow(self, slots: int) -> None:
        """Make room for slots below `slots`."""
        self._buckets.grow(slots)

    def touch(self, slot: int, hits: int, cost: float, weight: int) -> None:
        """Place a new slot, or renew the priority of one that was hit."""
        self._buckets.remove(slot)
        self._buckets.append(self._floor + self._credit(hits, cost, weight), slot)

    def remove(self, slot: int) -> None:
        """Forget a slot."""
        self._buckets.remove(slot)

    def victim(self) -> int:
        """Return the slot to evict next; there must be one."""
        while True:
            slot = self._buckets.oldest(self._floor)
            if slot is not None:
                return slot
            self._floor += 1
