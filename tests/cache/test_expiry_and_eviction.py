import gc
import random
import sys
import threading
import tracemalloc

import numpy as np
import pytest
from helpers import Clock, at_angle

from ai_model_optimizations.cache import SmartCache
from ai_model_optimizations.cache.entry_table import row_bytes
from ai_model_optimizations.cache.slot_lists import SlotLists


def test_a_hit_does_not_prolong_life_unless_asked():
    """Pain 7: the time to live slid on every hit, and popular answers went stale."""
    for sliding, alive in [(False, False), (True, True)]:
        clock = Clock()
        cache = SmartCache(ttl=10, sliding=sliding, clock=clock)
        cache.put(at_angle(1.0), "v", query="q")
        for _ in range(3):
            clock.now += 4
            hit = cache.get("q")
        assert (hit is not None) is alive
        clock.now += 10
        assert cache.get("q") is None


def test_an_expired_entry_never_answers_and_does_not_hide_a_living_one():
    """Pain 7: an expired entry still won."""
    clock = Clock()
    cache = SmartCache(clock=clock)
    for i in range(70):
        cache.put(at_angle(0.99), f"old {i}", ttl=5)
    cache.put(at_angle(0.9), "living", ttl=None)
    clock.now += 5
    assert cache.get_semantic_similar(at_angle(0.99)).value == "living"
    assert len(cache) == 1
    assert cache.stats()["removed"]["expired"] == 70


def test_time_to_live_is_per_entry_and_exact():
    clock = Clock()
    cache = SmartCache(ttl=100, clock=clock)
    cache.put(at_angle(1.0), "short", query="short", ttl=0.25)
    cache.put(at_angle(1.0, plane=1), "own", query="own")
    cache.put(at_angle(1.0, plane=2), "ever", query="ever", ttl=None)
    clock.now += 0.2
    assert cache.get("short").value == "short"
    clock.now += 0.05
    assert cache.get("short") is None
    clock.now += 1e9
    assert cache.get("own") is None
    assert [entry.value for entry in cache] == ["ever"]
    assert next(iter(cache)).expires_in is None


@pytest.mark.parametrize("ttl", [sys.maxsize, 1e308])
def test_a_time_to_live_beyond_all_clocks_is_for_ever(ttl):
    cache = SmartCache(capacity=2)
    cache.put(at_angle(1.0), "ever", query="ever", ttl=ttl)
    assert cache.get("ever").value == "ever" and len(cache) == 1
    for i in range(4):
        cache.put(at_angle(0.5, plane=i), i, ttl=ttl)
    assert len(cache) == len(list(cache)) == 2


def test_expired_entries_give_their_memory_back_without_being_asked_for():
    clock = Clock()
    cache = SmartCache(ttl=10, clock=clock)
    rows = np.random.default_rng(1).standard_normal((300, 8)).astype(np.float32)
    cache.put_many(rows, list(range(300)))
    clock.now += 60
    cache.put(rows[0], "new", ttl=None)
    for _ in range(20):
        cache.put(rows[0], "new", query="q", ttl=None)
    assert cache.stats()["entries"] == 2


def test_lru_evicts_what_was_used_longest_ago():
    cache = SmartCache(capacity=3, policy="lru", ttl=None)
    for name in "abc":
        cache.put(at_angle(1.0), name, query=name)
    cache.get("a")
    cache.put(at_angle(1.0), "d", query="d")
    assert sorted(entry.value for entry in cache) == ["a", "c", "d"]


def test_lfu_keeps_what_is_used_often_and_forgets_old_fame():
    cache = SmartCache(capacity=20, policy="lfu", ttl=None)
    cache.put(at_angle(1.0), "famous", query="famous")
    for _ in range(10):
        cache.get("famous")
    for i in range(100):
        cache.put(at_angle(1.0), i, query=str(i))
    assert cache.get("famous") is not None
    for i in range(5000):
        cache.put(at_angle(1.0), i, query=f"later {i}")
    assert cache.get("famous") is None


def test_cost_keeps_the_dear_and_small():
    cache = SmartCache(capacity=100, policy="cost", ttl=None)
    rng = random.Random(0)
    for i in range(400):
        dear = rng.random() < 0.2
        cache.put(
            at_angle(1.0), "dear" if dear else "cheap", query=str(i), cost=9.0 if dear else 0.5
        )
    kept = [entry.value for entry in cache]
    assert len(kept) == 100
    assert kept.count("dear") > 60


def test_capacity_and_bytes_hold_always():
    limit = 40 * 1024
    cache = SmartCache(capacity=50, max_bytes=limit, ttl=None)
    rng = random.Random(0)
    for i in range(400):
        cache.put(at_angle(1.0), "x" * rng.randrange(4000), query=str(i), tags=[str(i % 7)])
        stats = cache.stats()
        assert stats["entries"] <= 50 and stats["bytes"] <= limit
    assert stats["entries"] > 5


def test_an_entry_larger_than_all_is_an_error_and_evicts_nobody():
    cache = SmartCache(max_bytes=10_000)
    cache.put(at_angle(1.0), "small", query="q")
    for put in [
        lambda: cache.put(at_angle(1.0), "x" * 20_000, query="q"),
        lambda: cache.put_many([at_angle(1.0)] * 2, ["y", "x" * 20_000]),
    ]:
        with pytest.raises(ValueError, match="max_bytes"):
            put()
    assert [entry.value for entry in cache] == ["small"]


def test_a_full_cache_still_finds_what_it_holds():
    """Pain 9: eviction broke the index, and a full cache missed nearly always."""
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((3000, 16)).astype(np.float32)
    cache = SmartCache(capacity=200, ttl=None, policy="lru", threshold=0.99)
    for i, row in enumerate(rows):
        cache.put(row, i)
    assert len(cache) == 200
    for i in range(2800, 3000):
        assert cache.get_semantic_similar(rows[i]).value == i
    for i in range(0, 2800, 50):
        hit = cache.get_semantic_similar(rows[i])
        assert hit is None


@pytest.mark.parametrize("rounds", [10_000, pytest.param(1_000_000, marks=pytest.mark.soak)])
def test_a_million_rounds_of_put_and_evict_keep_everything_in_step(rounds):
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((512, 8)).astype(np.float32)
    cache = SmartCache(capacity=100, ttl=None, policy="lfu", threshold=0.999)
    picks = rng.integers(0, 512, rounds).tolist()
    for i, pick in enumerate(picks):
        cache.put(rows[pick], pick, query=str(pick) if pick % 2 else None, context=str(pick % 5))
        if i % 3 == 0:
            hit = cache.get_semantic_similar(rows[pick], context=str(pick % 5))
            assert hit.value == pick
    stats = cache.stats()
    assert stats["entries"] == 100 and stats["contexts"] <= 5
    assert sum(stats["removed"].values()) == rounds - 100
    cache.invalidate(prefix="")
    empty = cache.stats()
    assert empty["entries"] == empty["bytes"] == empty["contexts"] == 0


def test_the_bytes_an_entry_counts_for_are_those_it_takes():
    cache = SmartCache(capacity=10**6, max_bytes=10**9, ttl=60)
    rows = np.random.default_rng(4).standard_normal((4000, 4)).astype(np.float32)
    gc.collect()
    tracemalloc.start()
    cache.put_many(
        rows, [f"value {i:05}" for i in range(4000)], queries=[f"q{i}" for i in range(4000)]
    )
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    counted = cache.stats()["bytes"] - 4000 * row_bytes(4, "f16")
    assert 0.6 < grown / counted < 1.6


def test_slot_lists_keep_order_and_forget_empty_lists():
    lists = SlotLists()
    lists.grow(10)
    for slot in (3, 1, 7):
        lists.append(5, slot)
    lists.append(6, 0)
    assert list(lists.members(5)) == [3, 1, 7] and lists.oldest(5) == 3
    lists.remove(1)
    lists.remove(1)
    assert list(lists.members(5)) == [3, 7] and len(lists) == 2
    lists.remove(3)
    lists.remove(7)
    assert 5 not in lists and lists.oldest(5) is None and list(lists.members(5)) == []


class LockThatTellsItsWork:
    """A lock that remembers how many entries left while it was held, each time."""

    def __init__(self, cache):
        self.cache, self.lock, self.left = cache, threading.Lock(), []

    def __enter__(self):
        self.lock.acquire()
        self.before = self.cache._table.count

    def __exit__(self, *error):
        self.left.append(self.before - self.cache._table.count)
        self.lock.release()


@pytest.mark.parametrize(
    ("seconds", "clear_away"),
    [(20, len), (20, lambda c: c.stats()), (0, lambda c: c.invalidate(context="c"))],
    ids=["len", "stats", "invalidate"],
)
def test_readers_get_a_turn_while_many_entries_leave(seconds, clear_away):
    clock = Clock()
    cache = SmartCache(ttl=10, clock=clock)
    vectors = np.random.default_rng(0).standard_normal((3000, 4)).astype(np.float32)
    cache.put_many(vectors, ["v"] * 3000, context="c")
    clock.now += seconds
    cache._lock = lock = LockThatTellsItsWork(cache)
    clear_away(cache)
    assert sum(lock.left) == 3000 and max(lock.left) <= 512
