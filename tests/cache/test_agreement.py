"""Neighbours decide together: properties of the rule, and lookups against a plain model of it."""

import math
from itertools import pairwise

import numpy as np
import pytest
from helpers import Clock, at_angle
from hypothesis import given
from hypothesis import strategies as st

from ai_model_optimizations.cache import Agreement, LabelledPair, SmartCache

RULE = Agreement()
neighbours = st.lists(
    st.tuples(st.floats(-1.0, 1.0), st.sampled_from("abc")), min_size=1, max_size=12
).map(lambda rows: sorted(rows, reverse=True))
rules = st.builds(
    Agreement, softness=st.floats(0.01, 0.2), rivalry=st.floats(0.0, 4.0), neighbours=st.just(12)
)


def plain_support(rule, rows, answer):
    """The definition: softness * ln(sum for - rivalry * sum against), weights exp(s / softness)."""
    weight = [math.exp((s - rows[0][0]) / rule.softness) for s, _ in rows]
    own = sum(w for w, (_, a) in zip(weight, rows, strict=True) if a == answer)
    left = own - rule.rivalry * (sum(weight) - own)
    return -math.inf if left <= 1e-12 else rows[0][0] + rule.softness * math.log(left)


@given(st.floats(-1.0, 1.0), rules)
def test_one_entry_alone_supports_its_answer_with_its_cosine(similarity, rule):
    assert rule.decide([similarity], ["a"]) == (0, similarity)


@given(neighbours, rules)
def test_the_support_is_the_defined_one(rows, rule):
    similarities, answers = zip(*rows, strict=True)
    place, support = rule.decide(similarities, answers)
    assert place == answers.index(answers[place])
    expected = plain_support(rule, rows, answers[place])
    if math.isinf(expected) or math.isinf(support):
        assert min(expected, support) == -math.inf
        left = sum(math.exp((s - rows[0][0]) / rule.softness) for s, a in rows)
        assert rule.rivalry > 0 and left > 0
    elif expected < 0.999:
        # Near zero the logarithm makes much of rounding.
        assert support == pytest.approx(expected, abs=1e-6 if expected > -1 else 1e-2)


@given(neighbours, rules, st.floats(-1.0, 1.0))
def test_an_entry_of_the_same_answer_never_weakens_and_a_rival_never_strengthens(
    rows, rule, similarity
):
    similarities, answers = zip(*rows, strict=True)
    place, support = rule.decide(similarities, answers)
    for answer, worse in ((answers[place], False), ("rival", True)):
        more = sorted([*rows, (similarity, answer)], reverse=True)
        names = [a for _, a in more]
        winner, changed = rule.decide([s for s, _ in more], names)
        if names[winner] != answers[place]:
            continue
        assert changed <= support + 1e-9 if worse else changed >= support - 1e-9


@given(neighbours, rules, st.floats(-0.9, 1.0))
def test_no_answer_of_entries_below_the_reach_passes(rows, rule, threshold):
    below = [(s, a) for s, a in rows if s < rule.reach(threshold) - 1e-9]
    if below:
        similarities, answers = zip(*below, strict=True)
        assert rule.decide(similarities, answers)[1] < threshold
        assert not rule.may_support(threshold, similarities, answers)


@given(neighbours, rules, st.floats(-1.0, 1.0))
def test_what_may_not_be_supported_is_not(rows, rule, threshold):
    similarities, answers = zip(*rows, strict=True)
    if not rule.may_support(threshold, similarities, answers):
        assert rule.decide(similarities, answers)[1] < threshold


def test_only_an_equal_question_has_support_one():
    assert RULE.decide([0.99, 0.99, 0.99], "aaa")[1] < 1.0
    assert RULE.decide([1.0, 1.0], "aa")[1] == 1.0


def test_neighbours_that_agree_lift_and_those_that_differ_forbid():
    cache = SmartCache(threshold=0.85, guard=None, agreement=RULE, ttl=None)
    for i, (cosine, value) in enumerate([(0.84, "x"), (0.84, "x"), (0.83, "x")]):
        cache.put(at_angle(cosine), value, query=f"question {i}")
    hit = cache.get_semantic_similar(at_angle(1.0))
    assert hit is not None and hit.value == "x"
    assert 0.83 < hit.similarity < 0.85 < hit.support
    cache.put(at_angle(0.95), "y", query="another")
    cache.put(at_angle(0.94), "z", query="a third")
    assert cache.get_semantic_similar(at_angle(1.0), query="asked") is None
    refused = cache.rejections()[-1]
    assert (refused.reason, refused.query, refused.candidate) == (
        "disagreement",
        "asked",
        "another",
    )
    assert cache.stats()["rejected"] == {"disagreement": 1}


def test_what_the_guard_refuses_speaks_neither_for_nor_against():
    cache = SmartCache(threshold=0.8, agreement=RULE, ttl=None)
    cache.put(at_angle(0.97), "ten", query="what does a ride of 10 km cost")
    cache.put(at_angle(0.96), "five", query="what does a ride of 5 km cost")
    hit = cache.get_semantic_similar(at_angle(1.0), query="what costs a ride of 5 km")
    assert hit is not None and hit.value == "five"
    assert hit.support == hit.similarity
    assert cache.stats()["rejected"] == {"number": 1}


@pytest.mark.parametrize("count", [64, 65, 1024])
def test_any_number_of_neighbours_is_asked(count):
    clock = Clock()
    cache = SmartCache(
        threshold=0.99, guard=None, agreement=Agreement(neighbours=count), ttl=5, clock=clock
    )
    cache.put_many([at_angle(0.95)] * count, ["old"] * count)
    clock.now += 4
    cache.put_many([at_angle(0.9)] * count, ["new"] * count)
    assert cache.get_semantic_similar(at_angle(1.0)).value == "old"
    assert cache.get_many([at_angle(1.0)])[0].value == "old"
    clock.now += 2
    assert cache.get_semantic_similar(at_angle(1.0)).value == "new"


def test_expired_neighbours_have_no_voice_and_make_room_for_others():
    clock = Clock()
    cache = SmartCache(
        threshold=0.8, guard=None, agreement=Agreement(neighbours=2), ttl=None, clock=clock
    )
    for i in range(5):
        cache.put(at_angle(0.95), "old", query=f"old {i}", ttl=10)
    cache.put(at_angle(0.9), "new", query="new")
    assert cache.get_semantic_similar(at_angle(1.0)).value == "old"
    clock.now += 11
    assert cache.get_semantic_similar(at_angle(1.0)).value == "new"
    assert cache.stats()["removed"] == {"expired": 5}


def test_lookups_decide_over_exactly_the_nearest_rows_within_reach():
    rng = np.random.default_rng(3)
    centres = rng.standard_normal((6, 32))
    answers = rng.integers(0, 6, 300)
    rows = centres[answers] + 1.1 * rng.standard_normal((300, 32))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    cache = SmartCache(threshold=0.7, guard=None, agreement=RULE, ttl=None)
    for row, answer in zip(rows[:200], answers[:200], strict=True):
        cache.put(row, f"answer {answer}")
    index = cache._table.index
    held = np.stack([index.vector(slot) for slot in range(200)]).astype(np.float64)
    held /= np.linalg.norm(held, axis=1, keepdims=True)
    found = cache.get_many(rows[200:])
    hits = 0
    for row, many in zip(rows[200:], found, strict=True):
        unit = row.astype(np.float64) / np.linalg.norm(row.astype(np.float64))
        cosines = held @ unit
        near = [i for i in np.argsort(-cosines)[:12] if cosines[i] >= RULE.reach(0.7)]
        one = cache.get_semantic_similar(row)
        if not near:
            assert one is None and many is None
            continue
        place, support = RULE.decide([cosines[i] for i in near], [answers[i] for i in near])
        assert (one is None) == (many is None) == (support < 0.7)
        if one is not None:
            hits += 1
            assert one.value == many.value == f"answer {answers[near[place]]}"
            assert one.support == pytest.approx(min(support, 1.0), abs=1e-6)
    assert 20 < hits < 100


def test_shadow_hits_carry_the_support_that_calibration_needs(tmp_path):
    cache = SmartCache(threshold=0.5, guard=None, agreement=RULE, mode="shadow", ttl=None)
    for cosine in (0.7, 0.69):
        cache.put(at_angle(cosine), "x")
    assert cache.get_semantic_similar(at_angle(1.0)) is None
    shadow = cache.shadow_hits()[0]
    assert shadow.support > shadow.similarity
    assert LabelledPair.of(shadow, same=True).similarity == shadow.support
    cache.save(tmp_path / "kept")
    again = SmartCache.load(tmp_path / "kept", guard=None)
    assert again.get_semantic_similar(at_angle(1.0), threshold=0.72).value == "x"
    nearest = SmartCache.load(tmp_path / "kept", guard=None, agreement=None)
    assert nearest.get_semantic_similar(at_angle(1.0), threshold=0.72) is None


def test_the_reach_falls_with_the_neighbours():
    reaches = [Agreement(neighbours=n).reach(0.8) for n in (1, 2, 12, 100)]
    assert reaches[0] == 0.8 and all(a > b for a, b in pairwise(reaches))
    assert Agreement(softness=1.0, neighbours=1024).reach(-0.9) == -1.0


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"softness": 0.0}, ValueError),
        ({"softness": float("nan")}, ValueError),
        ({"rivalry": -1.0}, ValueError),
        ({"rivalry": float("inf")}, ValueError),
        ({"neighbours": 0}, ValueError),
        ({"neighbours": 2.5}, TypeError),
    ],
)
def test_wrong_values_are_named(options, error):
    with pytest.raises(error, match=next(iter(options))):
        Agreement(**options)
    with pytest.raises(TypeError, match="agreement"):
        SmartCache(agreement=options)
