"""The index beneath SmartCache: every answer is that of exact arithmetic over the stored rows."""

from __future__ import annotations

import gc
import threading
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from numpy.typing import NDArray

from ai_model_optimizations import _core
from ai_model_optimizations._core import EmbeddingIndex

DIM = 48
Vector = NDArray[np.float32]


def whole(vector: Vector) -> list[int]:
    """The elements in units of 2**-149, in which every float32 is a whole number."""
    return [int(Fraction(float(x)) * 2**149) for x in vector]


def exact_sign(query: Vector, row: Vector, threshold: float) -> int:
    """The sign of cos(query, row) - threshold, by whole numbers."""
    q, x = whole(query), whole(row)
    dot = sum(a * b for a, b in zip(q, x, strict=True))
    bound = Fraction(threshold)
    left = Fraction(dot * abs(dot))
    right = bound * abs(bound) * sum(a * a for a in q) * sum(b * b for b in x)
    return (left > right) - (left < right)


def exact_key(query: Vector, row: Vector) -> Fraction:
    """A number that orders rows as their cosines with the query do."""
    q, x = whole(query), whole(row)
    dot = sum(a * b for a, b in zip(q, x, strict=True))
    return Fraction(dot * abs(dot), sum(b * b for b in x))


def lifelike(rng: np.random.Generator, rows: int, dim: int = DIM) -> Vector:
    """Vectors as models make them: clustered, and few directions matter."""
    centres = np.random.default_rng(0).standard_normal((40, dim))
    spread = rng.standard_normal((rows, dim)) * 0.4
    weights = 1.0 / (1.0 + 0.2 * np.arange(dim))
    return ((centres[rng.integers(0, 40, rows)] + spread) * weights).astype(np.float32)


def cosines(query: Vector, rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Within 1e-12 for these sizes."""
    wide, q = rows.astype(np.float64), query.astype(np.float64)
    return np.asarray(wide @ q / np.linalg.norm(wide, axis=1) / np.linalg.norm(q))


def expected(
    slots: list[int], rows: NDArray[np.float32], query: Vector, threshold: float, k: int
) -> list[int]:
    """What a search must return; slots and rows are oldest first. Near ties go to whole numbers."""
    scores = cosines(query, rows)
    hits = [
        i
        for i, score in enumerate(scores)
        if score > threshold + 1e-12
        or (score > threshold - 1e-12 and exact_sign(query, rows[i], threshold) >= 0)
    ]
    if len(hits) > k:
        last = np.sort(scores[hits])[-k]
        hits = [i for i in hits if scores[i] >= last - 1e-12]
    hits.sort(key=lambda i: (-exact_key(query, rows[i]), i))
    return [slots[i] for i in hits[:k]]


@pytest.mark.parametrize("row_dtype", ["f16", "int8"])
def test_search_agrees_with_whole_numbers_at_ties_duplicates_and_denormals(row_dtype: str) -> None:
    rng = np.random.default_rng(1)
    vectors = lifelike(rng, 600)
    vectors[100:130] = vectors[0]
    vectors[150:160] *= np.float32(1e-42)
    vectors[160:170] *= np.float32(1e37)
    vectors[170:180] = np.eye(DIM, dtype=np.float32)[:10]
    index = EmbeddingIndex(DIM, row_dtype=row_dtype)
    slots = index.add_many(vectors, np.zeros(len(vectors), np.int64)).tolist()
    rows = np.stack([index.vector(slot) for slot in slots])
    for optimized in (False, True):
        if optimized:
            index.optimize()
        for i in (0, 1, 2, 3, 105, 155, 165, 170, 175):
            variants = [vectors[i], rows[i], rows[i] * np.float32(3), rows[i] + rows[i // 2]]
            query = variants[i % 4]
            tie = float(np.clip(cosines(query, rows)[i // 2], -1.0, 1.0))
            for threshold in (1.0, 0.85, tie, float(np.nextafter(tie, -2.0))):
                found, scores = index.search(query, 0, threshold, 40)
                assert found.tolist() == expected(slots, rows, query, threshold, 40)
                assert np.all(scores >= threshold)
                assert np.all(np.diff(scores) <= 0.0)


@pytest.mark.parametrize("row_dtype", ["f16", "int8"])
def test_a_stored_row_is_found_at_threshold_one(row_dtype: str) -> None:
    index = EmbeddingIndex(DIM, row_dtype=row_dtype)
    slots = index.add_many(lifelike(np.random.default_rng(2), 1000), np.zeros(1000, np.int64))
    index.optimize()
    for slot in slots[::7]:
        found, scores = index.search(index.vector(int(slot)), 0, 1.0, 1000)
        assert int(slot) in found.tolist()
        assert set(scores.tolist()) == {1.0}


@pytest.mark.parametrize("dim", [1, 2, 3, 31, 384, 1000])
@pytest.mark.parametrize("row_dtype", ["f16", "int8"])
def test_lookups_agree_with_float64_for_every_size_of_vector(dim: int, row_dtype: str) -> None:
    rng = np.random.default_rng(dim)
    vectors = lifelike(rng, 700, dim)
    index = EmbeddingIndex(dim, row_dtype=row_dtype)
    slots = index.add_many(vectors, np.zeros(700, np.int64))
    index.optimize()
    rows = np.stack([index.vector(int(slot)) for slot in slots])
    for query in lifelike(rng, 50, dim):
        scored = cosines(query, rows)
        for threshold in (-1.0, 0.5, 0.9):
            found, scores = index.search(query, 0, threshold, 5)
            best = np.sort(scored)[::-1][:5]
            best = best[best >= threshold]
            assert np.allclose(scores, best, atol=1e-9)
            assert np.allclose(scored[found], best, atol=1e-9)


finite = st.floats(-(2.0**100), 2.0**100, width=32).map(np.float32)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=st.lists(st.lists(finite, min_size=3, max_size=3), min_size=1, max_size=30),
    query=st.lists(finite, min_size=3, max_size=3),
    threshold=st.floats(-1.0, 1.0),
)
def test_any_finite_vectors_agree_with_whole_numbers(
    rows: list[list[float]], query: list[float], threshold: float
) -> None:
    vectors = np.array([row for row in rows if any(row)], np.float32).reshape(-1, 3)
    asked = np.array(query, np.float32)
    if not len(vectors) or not asked.any():
        return
    index = EmbeddingIndex(3)
    slots = index.add_many(vectors, np.zeros(len(vectors), np.int64)).tolist()
    stored = np.stack([index.vector(slot) for slot in slots])
    found, _ = index.search(asked, 0, threshold, 10)
    assert found.tolist() == expected(slots, stored, asked, threshold, 10)


class Changes(RuleBasedStateMachine):
    """Random adds, removals, saving and learning against a dictionary."""

    @initialize(row_dtype=st.sampled_from(["f16", "int8"]), rows=st.integers(0, 400))
    def start(self, row_dtype: str, rows: int) -> None:
        self.rng = np.random.default_rng(rows)
        self.row_dtype = row_dtype
        self.index = EmbeddingIndex(DIM, row_dtype=row_dtype)
        self.contexts: dict[int, dict[int, int]] = {}
        self.age = 0
        self.add_many(rows, 1)

    @rule(rows=st.integers(0, 40), contexts=st.integers(1, 4))
    def add_many(self, rows: int, contexts: int) -> None:
        where = self.rng.integers(0, contexts, rows)
        vectors = lifelike(self.rng, rows)
        for slot, context in zip(self.index.add_many(vectors, where), where, strict=True):
            assert all(int(slot) not in live for live in self.contexts.values())
            self.contexts.setdefault(int(context), {})[int(slot)] = self.age
            self.age += 1

    @rule(share=st.floats(0.0, 1.0))
    def remove(self, share: float) -> None:
        for live in self.contexts.values():
            for slot in [slot for slot in live if self.rng.random() < share]:
                self.index.remove(slot)
                del live[slot]

    @rule()
    def optimize(self) -> None:
        self.index.optimize()

    @rule()
    def save_and_load(self) -> None:
        rows, slots, contexts = self.index.export()
        self.index = EmbeddingIndex(DIM, row_dtype=self.row_dtype)
        self.index.restore(rows, slots, contexts)

    @rule(threshold=st.sampled_from([-1.0, 0.0, 0.6, 0.9]), k=st.integers(1, 4))
    def search(self, threshold: float, k: int) -> None:
        query = lifelike(self.rng, 1)[0]
        for context, live in self.contexts.items():
            found, _ = self.index.search(query, context, threshold, k)
            rows = {slot: self.index.vector(slot).astype(np.float64) for slot in live}
            unit = query.astype(np.float64) / np.linalg.norm(query.astype(np.float64))
            scores = {s: row @ unit / np.linalg.norm(row) for s, row in rows.items()}
            best = sorted(scores.values(), reverse=True)[:k]
            assert np.allclose(
                [scores[int(slot)] for slot in found], [s for s in best if s >= threshold]
            )

    @invariant()
    def length_is_right(self) -> None:
        if hasattr(self, "index"):
            assert len(self.index) == sum(map(len, self.contexts.values()))


TestChanges = Changes.TestCase
TestChanges.settings = settings(max_examples=6, stateful_step_count=10, deadline=None)


def test_contexts_never_meet() -> None:
    rng = np.random.default_rng(3)
    vectors = lifelike(rng, 900)
    contexts = np.array([-(2**63), -1, 0, 1, 2**63 - 1, 17] * 150, np.int64)
    index = EmbeddingIndex(DIM)
    slots = index.add_many(vectors, contexts)
    index.optimize()
    by_slot = dict(zip(slots.tolist(), contexts.tolist(), strict=True))
    for query, context in zip(vectors[:60], contexts[:60].tolist(), strict=True):
        found, _ = index.search(query, context, -1.0, 900)
        assert sorted(found.tolist()) == sorted(s for s, c in by_slot.items() if c == context)
    assert index.search(vectors[0], 4711, -1.0, 5)[0].size == 0


def test_many_contexts_with_few_rows_cost_about_what_one_costs() -> None:
    rows = 20_000
    vectors = np.random.default_rng(4).standard_normal((rows, 384), np.float32)
    one, many = EmbeddingIndex(384), EmbeddingIndex(384)
    one.add_many(vectors, np.zeros(rows, np.int64))
    many.add_many(vectors, np.arange(rows) // 2)
    assert one.memory_bytes / rows < 1000
    assert many.memory_bytes / rows < 1000


def test_search_many_gives_the_answers_of_search() -> None:
    rng = np.random.default_rng(5)
    index = EmbeddingIndex(DIM)
    index.add_many(lifelike(rng, 3000), rng.integers(0, 3, 3000))
    index.optimize()
    queries, contexts = lifelike(rng, 90), rng.integers(0, 4, 90)
    slots, scores = index.search_many(queries, contexts, 0.8, 4)
    assert slots.shape == scores.shape == (90, 4)
    for i in range(90):
        found, found_scores = index.search(queries[i], int(contexts[i]), 0.8, 4)
        assert slots[i].tolist() == found.tolist() + [-1] * (4 - len(found))
        assert scores[i, : len(found)].tolist() == found_scores.tolist()
    assert index.search_many(queries[:0], contexts[:0], 0.8, 4)[0].shape == (0, 4)


def test_find_gives_the_hits_of_search() -> None:
    rng = np.random.default_rng(8)
    vectors = lifelike(rng, 500, 24)
    index = _core.EmbeddingIndex(24)
    index.add_many(vectors, np.arange(500) % 2)
    for query in vectors[:50]:
        for threshold, k in ((-1.0, 64), (0.9, 3), (1.0, 1)):
            slots, scores = index.search(query, 1, threshold, k)
            found = index.find(query, 1, threshold, k)
            assert found == list(zip(slots.tolist(), scores.tolist(), strict=True))
    with pytest.raises(ValueError, match="at most 64"):
        index.find(vectors[0], 1, 0.5, 65)
    with pytest.raises(TypeError):
        index.find(vectors[0], 1, 0.5)  # type: ignore[call-arg]


def test_export_and_restore_keep_every_bit() -> None:
    for row_dtype in ("f16", "int8"):
        rng = np.random.default_rng(6)
        index = EmbeddingIndex(DIM, row_dtype=row_dtype)
        slots = index.add_many(lifelike(rng, 500), rng.integers(-2, 3, 500))
        for slot in slots[::3]:
            index.remove(int(slot))
        again = EmbeddingIndex(DIM, row_dtype=row_dtype)
        again.restore(*index.export())
        for a, b in zip(index.export(), again.export(), strict=True):
            assert a.dtype == b.dtype
            assert np.array_equal(a, b)
        new = again.add(np.ones(DIM, np.float32), 0)
        assert new not in index.export()[1].tolist()


def test_bad_arguments_are_named_and_change_nothing() -> None:
    index = EmbeddingIndex(4)
    good = np.array([1, 2, 3, 4], np.float32)
    index.add(good, 0)
    for bad in (good[:3], np.zeros(4, np.float32), good * np.float32(np.nan), good[None]):
        with pytest.raises(ValueError):
            index.add(bad, 0)
        with pytest.raises(ValueError):
            index.search(bad, 0, 0.5, 1)
    with pytest.raises(ValueError, match="vector 1: a zero vector"):
        index.add_many(np.array([good, good * 0]), np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="contexts"):
        index.add_many(good[None], np.zeros(2, np.int64))
    with pytest.raises(TypeError):
        index.add(good.astype(np.float64), 0)
    for threshold in (1.5, -1.5, float("nan")):
        with pytest.raises(ValueError, match="threshold"):
            index.search(good, 0, threshold, 1)
    with pytest.raises(ValueError, match="k:"):
        index.search(good, 0, 0.5, 0)
    with pytest.raises(ValueError, match="slot 7"):
        index.remove(7)
    with pytest.raises(ValueError, match="slot -1"):
        index.vector(-1)
    with pytest.raises(ValueError, match="row_dtype"):
        EmbeddingIndex(4, row_dtype="f64")
    with pytest.raises(ValueError, match="dim"):
        EmbeddingIndex(0)
    with pytest.raises(ValueError, match="used"):
        index.restore(*index.export())
    assert len(index) == 1


def test_indexes_leave_nothing_behind() -> None:
    def use() -> None:
        index = EmbeddingIndex(DIM)
        index.add_many(lifelike(np.random.default_rng(7), 500), np.arange(500) % 3)
        index.optimize()
        index.search(np.ones(DIM, np.float32), 0, 0.1, 3)

    use()
    gc.collect()
    before = _core.memory_info()
    for _ in range(5):
        use()
    gc.collect()
    after = _core.memory_info()
    assert after["live_bytes"] - after["scratch_bytes"] == (
        before["live_bytes"] - before["scratch_bytes"]
    )


def test_threads_may_search_while_others_add_remove_and_learn() -> None:
    rng = np.random.default_rng(8)
    kept = lifelike(rng, 1200)
    passing = lifelike(rng, 400)
    index = EmbeddingIndex(DIM)
    slots = index.add_many(kept, np.zeros(1200, np.int64))
    stored = {int(slot): index.vector(int(slot)) for slot in slots}
    ended = threading.Event()
    failures: list[BaseException] = []

    def guarded(work: object) -> None:
        try:
            work()  # type: ignore[operator]
        except BaseException as error:
            failures.append(error)
            ended.set()

    def change() -> None:
        for _ in range(6):
            added = index.add_many(passing, np.ones(400, np.int64) * rng.integers(0, 2))
            for slot in added.tolist():
                index.remove(slot)
        ended.set()

    def learn() -> None:
        while not ended.is_set():
            index.optimize()

    def look_up() -> None:
        while not ended.is_set():
            for slot in slots[::17].tolist():
                found, _ = index.search(stored[slot], 0, 1.0, 5)
                assert slot in found.tolist()

    threads = [
        threading.Thread(target=guarded, args=(f,)) for f in (change, learn, look_up, look_up)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    assert len(index) == 1200


@pytest.mark.slow
def test_a_hundred_thousand_lookups_agree_with_float64() -> None:
    rng = np.random.default_rng(9)
    index = EmbeddingIndex(DIM)
    slots = index.add_many(lifelike(rng, 20_000), np.zeros(20_000, np.int64))
    index.optimize()
    rows = np.stack([index.vector(int(slot)) for slot in slots]).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    for _ in range(100):
        queries = lifelike(rng, 1000)
        unit = queries.astype(np.float64)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        best = (unit @ rows.T).max(axis=1)
        found, scores = index.search_many(queries, np.zeros(1000, np.int64), 0.85, 1)
        sure = np.abs(best - 0.85) > 1e-9
        assert np.array_equal(found[sure, 0] >= 0, best[sure] >= 0.85)
        hit = found[:, 0] >= 0
        assert np.allclose(scores[hit, 0], best[hit], atol=1e-9)
