"""Random operations on SmartCache agree with a model that is a list of entries."""

import math

import numpy as np
from helpers import Clock
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from reference_index import ReferenceIndex

from ai_model_optimizations.cache import SmartCache

DIM = 6
CAPACITY = 12
VECTORS = np.random.default_rng(5).standard_normal((14, DIM)).astype(np.float32)
# Some alike, some opposite, one twice.
VECTORS[10] = VECTORS[0] + np.float32(0.05) * VECTORS[1]
VECTORS[11] = -VECTORS[2]
VECTORS[12] = VECTORS[3]

vectors = st.integers(0, len(VECTORS) - 1)
contexts = st.sampled_from(["", "a", ("a",), ("a", 1), ("a", True)])
texts = st.none() | st.sampled_from(["one", "two", " one ", "three"])
thresholds = st.sampled_from([-1.0, 0.0, 0.5, 0.85, 0.99])


class Model:
    """Entries in the order in which they were used, and nothing clever."""

    def __init__(self):
        self.entries = []

    def live(self, now):
        return [e for e in self.entries if e["expires"] > now]

    def put(self, entry, now):
        text, context = entry["text"], repr(entry["context"])
        self.entries = [
            e
            for e in self.entries
            if text is None or (e["text"], repr(e["context"])) != (text, context)
        ]
        # The seconds of the cache's own clearing: an entry leaves when its whole second is over.
        self.entries = [e for e in self.entries if min(e["expires"], 1e12) // 1 + 1 > now]
        while len(self.entries) >= CAPACITY:
            self.entries.pop(0)
        self.entries.append(entry)

    def use(self, entry):
        self.entries.remove(entry)
        self.entries.append(entry)


class SmartCacheMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.clock = Clock()
        self.cache = SmartCache(
            capacity=CAPACITY, ttl=None, policy="lru", guard=None, clock=self.clock
        )
        self.model = Model()
        self.serial = 0

    def scores(self, vector):
        index = ReferenceIndex(DIM)
        for entry in self.model.entries:
            index.add(VECTORS[entry["vector"]], 0)
        slots, scores = index.search(VECTORS[vector], 0, -1.0, len(index))
        return dict(zip(slots.tolist(), scores.tolist(), strict=True))

    def expected(self, vector, threshold, context):
        """Entries that may answer, best first; of equal ones the newest."""
        scores = self.scores(vector)
        found = [
            (scores[i], entry["serial"], entry)
            for i, entry in enumerate(self.model.entries)
            if repr(entry["context"]) == repr(context)
            and entry["expires"] > self.clock.now
            and scores[i] >= threshold
        ]
        return max(found, key=lambda f: f[:2], default=None)

    @rule(
        vector=vectors,
        text=texts,
        context=contexts,
        ttl=st.none() | st.sampled_from([0.5, 3.0, 20.0]),
        tags=st.sets(st.sampled_from("xy")),
    )
    def put(self, vector, text, context, ttl, tags):
        self.serial += 1
        entry = {
            "serial": self.serial,
            "vector": vector,
            "text": None if text is None else text.strip(),
            "context": context,
            "expires": math.inf if ttl is None else self.clock.now + ttl,
            "tags": tags,
        }
        entry["id"] = self.cache.put(
            VECTORS[vector], self.serial, query=text, context=context, ttl=ttl, tags=sorted(tags)
        )
        self.model.put(entry, self.clock.now)

    @rule(vector=vectors, threshold=thresholds, context=contexts)
    def look_up(self, vector, threshold, context):
        hit = self.cache.get_semantic_similar(VECTORS[vector], threshold, context)
        best = self.expected(vector, threshold, context)
        assert (hit is None) == (best is None)
        if best is not None:
            score, serial, entry = best
            assert hit.value == serial and abs(hit.similarity - min(score, 1.0)) < 1e-6
            self.model.use(entry)
        self.forget_expired_that_were_seen()

    @rule(text=texts.filter(bool), context=contexts)
    def look_up_text(self, text, context):
        hit = self.cache.get(text, context=context)
        matches = [
            e
            for e in self.model.live(self.clock.now)
            if e["text"] == text.strip() and repr(e["context"]) == repr(context)
        ]
        assert (hit and hit.value) == (matches[0]["serial"] if matches else None)
        if matches:
            self.model.use(matches[0])
        self.forget_expired_that_were_seen()

    @rule(pick=vectors, threshold=thresholds, context=contexts)
    def look_up_many(self, pick, threshold, context):
        rows = [pick, (pick + 3) % len(VECTORS), pick]
        hits = self.cache.get_many(VECTORS[rows], threshold, context)
        for row, hit in zip(rows, hits, strict=True):
            best = self.expected(row, threshold, context)
            assert (hit and hit.value) == (best and best[1])
            if best is not None:
                self.model.use(best[2])
        self.forget_expired_that_were_seen()

    @rule(seconds=st.sampled_from([0.2, 1.0, 5.0, 30.0]))
    def wait(self, seconds):
        self.clock.now += seconds

    @rule(context=contexts)
    def invalidate_context(self, context):
        self.settle()
        gone = [e for e in self.model.entries if repr(e["context"]) == repr(context)]
        assert self.cache.invalidate(context=context) == len(gone)
        self.model.entries = [e for e in self.model.entries if e not in gone]

    @rule(tag=st.sampled_from("xyz"))
    def invalidate_tag(self, tag):
        self.settle()
        gone = [e for e in self.model.entries if tag in e["tags"]]
        assert self.cache.invalidate(tag=tag) == len(gone)
        self.model.entries = [e for e in self.model.entries if e not in gone]

    @rule(pick=st.integers(0, CAPACITY))
    def invalidate_entry(self, pick):
        self.settle()
        if pick < len(self.model.entries):
            entry = self.model.entries.pop(pick)
            assert self.cache.invalidate(entry=entry["id"]) == 1
            assert self.cache.invalidate(entry=entry["id"]) == 0

    @rule()
    def clear(self):
        self.cache.clear()
        self.model.entries = []

    def settle(self):
        """Let both forget what has expired; within its last second the cache may keep an entry."""
        self.clock.now += 1.0
        len(self.cache)
        self.model.entries = self.model.live(self.clock.now)
        for entry in list(self.cache._table.slots()):
            if self.cache._table.expires[entry] <= self.clock.now:
                self.cache._table.remove(entry, "expired")

    def forget_expired_that_were_seen(self):
        """A lookup drops the expired entries it meets, so capacity must not be judged by them."""
        held = {self.cache._table.value[slot] for slot in self.cache._table.slots()}
        self.model.entries = [
            e
            for e in self.model.entries
            if e["expires"] > self.clock.now or str(e["serial"]).encode() in held
        ]

    @invariant()
    def the_living_entries_are_those_of_the_model(self):
        living = {e["serial"] for e in self.model.live(self.clock.now)}
        assert {entry.value for entry in self.cache} == living

    @invariant()
    def every_part_of_the_table_counts_the_same(self):
        table = self.cache._table
        slots = table.slots()
        assert len(slots) == len(table) == (len(table.index) if table.index is not None else 0)
        assert table.bytes == sum(table.weight[slot] for slot in slots)
        assert table.context_count() == len({repr(table.context_key(slot)) for slot in slots})


TestSmartCache = SmartCacheMachine.TestCase
TestSmartCache.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
