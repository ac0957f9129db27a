import enum

import numpy as np
import pytest
from helpers import at_angle
from hypothesis import given
from hypothesis import strategies as st

from ai_model_optimizations.cache import SmartCache, context_of
from ai_model_optimizations.cache.contexts import context_from_key, context_key

parts = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=6,
)
contexts = st.text() | st.lists(parts, max_size=4).map(tuple)


def test_an_entry_is_seen_only_from_its_own_context():
    """Pain 3: tenants leaked into each other through soft prefixes."""
    cache = SmartCache(threshold=-1.0)
    cache.put(at_angle(1.0), "a", query="q", context="tenant-a")
    for other in ["", "tenant-", "tenant-ab", "tenant-b", ("tenant-a",), "TENANT-A"]:
        assert cache.get_semantic_similar(at_angle(1.0), context=other) is None
        assert cache.get("q", context=other) is None
        assert cache.get_many([at_angle(1.0)], context=other) == [None]
    assert cache.get_semantic_similar(at_angle(1.0), context="tenant-a").value == "a"


@given(contexts, contexts)
def test_keys_are_equal_only_for_contexts_of_equal_parts_and_types(a, b):
    assert (context_key(a) == context_key(b)) == (repr(a) == repr(b))
    assert repr(context_from_key(context_key(a))) == repr(a)


@pytest.mark.parametrize("pair", [((1,), (True,)), ((0,), (False,)), (("1",), (1,)), ("a", ("a",))])
def test_contexts_that_python_calls_equal_or_alike_are_apart(pair):
    cache = SmartCache()
    cache.put(at_angle(1.0), "first", context=pair[0])
    assert cache.get_semantic_similar(at_angle(1.0), context=pair[1]) is None


def test_contexts_are_not_hashes_of_the_request():
    """Pain 8: isolation by a hash of the whole request never hit again."""
    cache = SmartCache()
    scope = ("tenant", 7)
    cache.put(at_angle(1.0), "v", context=context_of(["Hi", "Hello"], scope=scope))
    again = context_of([{"role": "user", "content": "Hi"}, "Hello"], scope=("tenant", 7))
    assert cache.get_semantic_similar(at_angle(0.95), context=again).value == "v"


def test_a_required_context_cannot_be_forgotten():
    cache = SmartCache(require_context=True)
    for call in [
        lambda: cache.put(at_angle(1.0), "v"),
        lambda: cache.get_semantic_similar(at_angle(1.0)),
        lambda: cache.get("q"),
        lambda: cache.get_many([at_angle(1.0)]),
        lambda: cache.get_or_compute("q", str.upper),
    ]:
        with pytest.raises(ValueError, match="context"):
            call()
    cache.put(at_angle(1.0), "v", context="t")
    assert cache.get_semantic_similar(at_angle(1.0), context="t")


def test_the_same_words_after_another_conversation_are_another_question():
    """Pain 4: multi-turn."""
    adults = [{"role": "user", "content": "What does a ticket cost?"}, "10"]
    museum = [{"role": "user", "content": "When does the museum open?"}, "At 9"]
    cache = SmartCache()
    cache.put(at_angle(1.0), "5", query="And for children?", context=context_of(adults))
    assert cache.get("And for children?", context=context_of(museum)) is None
    assert cache.get("And for children?", context=context_of(adults)).value == "5"


def test_context_of_sees_the_last_messages_their_roles_and_the_scope():
    talk = [{"role": "user", "content": str(i)} for i in range(6)]
    assert context_of(talk, last=2) == context_of(talk[4:], last=4)
    assert context_of(talk, last=2) != context_of(talk, last=3)
    assert context_of(talk, last=0) == context_of([], last=4)
    assert context_of(talk) != context_of(talk, scope="tenant")
    assert context_of(["a"]) != context_of([{"role": "assistant", "content": "a"}])
    with pytest.raises(TypeError):
        context_of("hello")
    with pytest.raises(ValueError, match="negative"):
        context_of([], last=-1)


def test_many_contexts_with_one_entry_each_leave_nothing_behind():
    cache = SmartCache()
    rows = np.random.default_rng(0).standard_normal((500, 8)).astype(np.float32)
    for i, row in enumerate(rows):
        cache.put(row, i, context=("user", i))
    assert cache.stats()["contexts"] == 500
    hits = [cache.get_semantic_similar(rows[i], context=("user", i)) for i in range(500)]
    assert [hit.value for hit in hits] == list(range(500))
    for i in range(500):
        assert cache.invalidate(context=("user", i)) == 1
    assert cache.stats()["contexts"] == 0 and cache.stats()["bytes"] == 0


def test_a_context_counts_by_its_letters_whatever_it_says_of_itself():
    class Language(str, enum.Enum):
        TURKISH = "tr"

    class Secret(str):
        __slots__ = ()

        def __str__(self):
            return "***"

    cache = SmartCache(threshold=-1.0)
    cache.put(at_angle(1.0), "turkish", context=Language.TURKISH)
    cache.put(at_angle(1.0), "of ann", context=Secret("ann"))
    assert cache.get_semantic_similar(at_angle(1.0), context=Secret("bob")) is None
    for context, value in (("tr", "turkish"), ("ann", "of ann"), (Secret("ann"), "of ann")):
        assert cache.get_semantic_similar(at_angle(1.0), context=context).value == value


@pytest.mark.parametrize("message", [5, None, b"bytes", ["a"]])
def test_what_is_no_message_has_no_context(message):
    with pytest.raises(TypeError, match=r"messages: expected texts.*got"):
        context_of(["a", message])
    with pytest.raises(TypeError, match="last"):
        context_of(["a"], last="4")


@pytest.mark.parametrize(
    "given", [{"tag": 5}, {"tag": ["a"]}, {"prefix": 5}, {"prefix": ["t"]}, {"entry": "1"}]
)
def test_what_cannot_be_a_condition_is_an_error_and_removes_nothing(given):
    cache = SmartCache()
    cache.put(at_angle(1.0), "v", context=("t", 1), tags=["a"])
    with pytest.raises(TypeError, match=r"tag|context|entry"):
        cache.invalidate(**given)
    assert len(cache) == 1


@pytest.mark.parametrize(
    ("context", "prefix", "begins"),
    [
        (("t", 12), ("t", 1), False),
        (("t", 1), ("t", 1), True),
        (("t", (1, 2)), ("t", (1,)), False),
        (("t", (1, 2)), ("t", (1, 2)), True),
        (("t]", "x"), ("t",), False),
        (('t", "x',), ("t",), False),
        (("t", True), ("t", 1), False),
        (("t",), (), True),
        ("t", (), False),
        (("t",), "t", False),
        ("", "", True),
        (("ş\ud800", 1), ("ş\ud800",), True),
    ],
)
def test_a_prefix_ends_where_an_item_of_the_context_does(context, prefix, begins):
    cache = SmartCache()
    cache.put(at_angle(1.0), "v", context=context)
    assert cache.invalidate(prefix=prefix) == begins


def test_invalidate_takes_what_meets_all_conditions():
    """Pain 13: how to remove a false hit."""
    cache = SmartCache()
    for i in range(12):
        tenant = ("t", i % 2)
        tags = ["even"] if i % 4 == 0 else []
        cache.put(at_angle(1 - i / 100), i, context=(*tenant, "talk"), tags=tags)
    cache.put(at_angle(1.0), "s", context="tenant-1/a")
    cache.put(at_angle(1.0), "s", context="tenant-10/a")
    assert cache.invalidate(tag="even", context=("t", 1, "talk")) == 0
    assert cache.invalidate(tag="even") == 3
    assert cache.invalidate(tag="even") == 0
    assert cache.invalidate(prefix=("t", 1)) == 6
    assert cache.invalidate(prefix=("t", True)) == 0
    assert cache.invalidate(prefix="tenant-1/") == 1
    hit = cache.get_semantic_similar(at_angle(1.0), context=("t", 0, "talk"))
    assert cache.invalidate(entry=hit) == 1
    assert cache.invalidate(entry=hit.entry) == 0
    after = cache.get_semantic_similar(at_angle(1.0), context=("t", 0, "talk"))
    assert after.entry != hit.entry
    assert cache.invalidate(entry=after.entry, context="elsewhere") == 0
    assert len(cache) == 3
    with pytest.raises(ValueError, match="clear"):
        cache.invalidate()
