from types import SimpleNamespace

import numpy as np
import pytest
from helpers import BAD, GOOD, Clock, TableEmbedder, Unreadable, at_angle

from ai_model_optimizations import SpaceMismatchError
from ai_model_optimizations.cache import SmartCache


def test_the_best_entry_at_or_above_the_threshold_answers():
    cache = SmartCache(threshold=0.85)
    cache.put(at_angle(0.87), "near")
    cache.put(at_angle(0.95), "nearer")
    hit = cache.get_semantic_similar(at_angle(1.0))
    assert hit.value == "nearer"
    assert hit.similarity == pytest.approx(0.95, abs=2e-3)
    assert cache.get_semantic_similar(at_angle(1.0, plane=1)) is None


def test_an_emptied_cache_keeps_its_index_and_what_that_has_learned():
    cache = SmartCache(threshold=0.85)
    entry = cache.put(at_angle(0.9), "first")
    index = cache._table.index
    assert cache.invalidate(entry=entry) == 1 and len(cache) == 0
    cache.put(at_angle(0.9), "second")
    assert cache._table.index is index
    assert cache.get_semantic_similar(at_angle(1.0)).value == "second"


@pytest.mark.parametrize("threshold", [0, 0.0, -1.0])
def test_a_threshold_that_is_zero_or_negative_counts(threshold):
    """Pain 6: threshold=0 was dropped by truthiness."""
    cache = SmartCache(threshold=0.99)
    cache.put(at_angle(0.1), "far")
    assert cache.get_semantic_similar(at_angle(1.0)) is None
    assert cache.get_semantic_similar(at_angle(1.0), threshold=threshold).value == "far"
    assert SmartCache(threshold=0).threshold == 0.0


@pytest.mark.parametrize("threshold", [1.5, -1.01, float("nan"), 1.9])
def test_a_threshold_off_the_cosine_scale_is_an_error(threshold):
    """Pain 5: distance and similarity were confused, and 0.05 became 1.9 in the async form."""
    with pytest.raises(ValueError, match="cosine"):
        SmartCache(threshold=threshold)
    cache = SmartCache()
    with pytest.raises(ValueError, match="cosine"):
        cache.get_semantic_similar(at_angle(1.0), threshold=threshold)


@pytest.mark.parametrize(
    "form",
    [
        lambda v: v,
        lambda v: v.tolist(),
        lambda v: tuple(v.tolist()),
        lambda v: v.astype(np.float64) * 1e200,
        lambda v: v.astype(np.float16),
        lambda v: v * np.float32(37.0),
        lambda v: v[None, :],
        lambda v: np.repeat(v, 2)[::2],
    ],
    ids=["f32", "list", "tuple", "huge f64", "f16", "unnormalised", "row", "strided"],
)
def test_every_form_of_an_embedding_is_the_same_question(form):
    cache = SmartCache(threshold=0.999)
    cache.put(form(at_angle(0.5)), "value")
    assert cache.get_semantic_similar(form(at_angle(0.5))).value == "value"
    assert cache.get_many([form(at_angle(0.5))])[0].value == "value"


def test_a_tensor_is_an_embedding():
    torch = pytest.importorskip("torch")
    cache = SmartCache(threshold=0.99)
    cache.put(torch.tensor([1.0, 0.0], dtype=torch.bfloat16, requires_grad=True), "value")
    assert cache.get_semantic_similar(torch.tensor([1.0, 0.01])).value == "value"
    with pytest.raises(TypeError, match="real numbers, got dtype complex64"):
        cache.get_semantic_similar(torch.tensor([1.0, 1.0j]))


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (np.zeros(8, np.float32), ValueError),
        (np.full(8, np.nan, np.float32), ValueError),
        (np.full(8, np.inf, np.float32), ValueError),
        (np.ones(7, np.float32), ValueError),
        (np.ones((2, 8), np.float32), ValueError),
        (np.ones(8, bool), TypeError),
        (np.ones(8, complex), TypeError),
        (["a"] * 8, TypeError),
        ([[1.0], [1.0, 2.0]], ValueError),
        (None, TypeError),
        (3.0, ValueError),
    ],
)
def test_a_bad_embedding_is_an_error_and_changes_nothing(bad, error):
    cache = SmartCache()
    cache.put(at_angle(1.0), "value")
    with pytest.raises(error):
        cache.put(bad, "other")
    with pytest.raises(error):
        cache.get_semantic_similar(bad)
    assert len(cache) == 1
    assert cache.stats()["puts"] == 1


def test_a_wrong_dimension_names_the_right_one():
    cache = SmartCache()
    cache.put(np.ones(384, np.float32), "x")
    for wrong in (np.ones(100, np.float32), [1.0] * 100):
        with pytest.raises(ValueError, match=r"embedding must have shape \(384,\), got \(100,\)"):
            cache.get_semantic_similar(wrong)


def test_a_bad_embedding_is_an_error_for_an_empty_cache_too():
    with pytest.raises(ValueError, match="zero"):
        SmartCache().get_semantic_similar(np.zeros(4, np.float32))


def test_vectors_of_another_model_raise():
    """Pain 11: the model was changed and nobody noticed."""

    class Spaced(list):
        space_id = "model-b"

    cache = SmartCache(embedder=TableEmbedder({"a": at_angle(1.0)}))
    cache.put("a", "value")
    with pytest.raises(SpaceMismatchError, match="model-b"):
        cache.get_semantic_similar(Spaced(at_angle(1.0).tolist()))
    with pytest.raises(SpaceMismatchError):
        cache.put(Spaced([1.0, 0.0]), "value")
    with pytest.raises(SpaceMismatchError):
        SmartCache(space_id="model-b", embedder=TableEmbedder({}))
    bare = SmartCache()
    bare.put(Spaced([1.0, 0.0]), "value")
    assert bare.space_id == "model-b"


def test_the_same_text_is_found_without_embedding_it():
    embedder = TableEmbedder({"How are you?": at_angle(1.0)})
    cache = SmartCache(embedder=embedder)
    cache.put("How are you?", "fine")
    hit = cache.get("  How   are you? ")
    assert hit.exact and hit.similarity == 1.0 and hit.guarded
    assert len(embedder.calls) == 1
    assert cache.stats()["exact_hits"] == 1


def test_in_tells_whether_the_same_text_is_there_and_counts_nothing():
    clock = Clock()
    cache = SmartCache(clock=clock)
    cache.put(at_angle(1.0), "value", query="How do I pay?", ttl=10)
    cache.put(at_angle(1.0), "value", query="Where is it?", context="ann")
    before = cache.stats()
    assert "How do  I pay?" in cache and "How can I pay?" not in cache and "" not in cache
    assert "Where is it?" not in cache
    with pytest.raises(TypeError, match="text must be a string, got int"):
        assert 5 in cache
    assert cache.stats() == before
    clock.now += 11
    assert "How do I pay?" not in cache


def test_without_an_embedder_the_same_text_is_still_found():
    cache = SmartCache()
    cache.put(at_angle(1.0), "fine", query="How are you?")
    assert cache.get("How are you?").value == "fine"
    assert cache.get("How do you do?") is None
    with pytest.raises(TypeError, match="embedder"):
        cache.put("How do you do?", "well")


def test_the_same_text_replaces_its_answer():
    cache = SmartCache()
    cache.put(at_angle(1.0), "old", query="q")
    cache.put(at_angle(1.0), "new", query=" q ")
    assert len(cache) == 1
    assert cache.get("q").value == "new"
    assert cache.stats()["removed"] == {"replaced": 1}


def test_of_equal_vectors_the_newest_answers_however_many_there_are():
    cache = SmartCache()
    for i in range(50):
        cache.put(at_angle(1.0), i)
    assert cache.get_semantic_similar(at_angle(1.0)).value == 49


@pytest.mark.parametrize("blank", ["", "   ", "\n\t"])
def test_a_blank_question_neither_hits_nor_is_stored(blank):
    """Pain 4: an empty query matched across conversations."""
    cache = SmartCache(embedder=TableEmbedder({"": at_angle(1.0), "q": at_angle(1.0)}))
    cache.put("q", "value")
    assert cache.get(blank) is None
    assert cache.get_semantic_similar(at_angle(1.0), query=blank) is None
    assert cache.get_many([blank]) == [None]
    with pytest.raises(ValueError, match="blank"):
        cache.put(blank, "value")
    with pytest.raises(ValueError, match="blank"):
        cache.put(at_angle(1.0), "value", query=blank)
    assert cache.get_or_compute(blank, lambda text: "computed") == "computed"
    assert len(cache) == 1


def test_many_agree_with_one_by_one():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((60, 16)).astype(np.float32)
    cache = SmartCache(threshold=0.87)
    cache.put_many(rows, list(range(60)), queries=[f"text {i}" for i in range(60)])
    queries = rows[::2] + 0.6 * rng.standard_normal((30, 16)).astype(np.float32)
    many = cache.get_many(queries)
    single = [cache.get_semantic_similar(query) for query in queries]
    assert [h and h.value for h in many] == [h and h.value for h in single]
    assert any(h is None for h in many) and any(h is not None for h in many)


def test_many_texts_embed_only_what_is_not_found():
    vectors = {"a": at_angle(1.0), "b": at_angle(1.0, plane=1), "c": at_angle(0.99, plane=1)}
    embedder = TableEmbedder(vectors)
    cache = SmartCache(embedder=embedder)
    assert cache.put_many(["a", "b"], ["A", "B"]) != [0, 0]
    found = cache.get_many(["a", "c", " "])
    assert [hit and hit.value for hit in found] == ["A", "B", None]
    assert embedder.calls == [["a", "b"], ["c"]]


def test_mismatched_lengths_are_an_error_and_store_nothing():
    cache = SmartCache()
    with pytest.raises(ValueError, match="2 keys, 1 values"):
        cache.put_many([[1.0, 0.0], [0.0, 1.0]], ["one"])
    with pytest.raises(ValueError, match="1 embeddings"):
        cache.get_many([[1.0, 0.0]], texts=["a", "b"])
    assert len(cache) == 0


def test_values_are_copies():
    cache = SmartCache()
    value = {"list": [1, 2]}
    cache.put([1.0, 0.0], value)
    value["list"].append(3)
    hit = cache.get_semantic_similar([1.0, 0.0])
    hit.value["list"].append(4)
    assert cache.get_semantic_similar([1.0, 0.0]).value == {"list": [1, 2]}


@pytest.mark.parametrize("value", ["text", b"bytes", None, 3, 2.5, True, ["a", {"b": None}], ""])
def test_bytes_str_and_json_come_back_equal(value):
    cache = SmartCache()
    cache.put([1.0, 0.0], value)
    back = cache.get_semantic_similar([1.0, 0.0]).value
    assert back == value and type(back) is type(value)


@pytest.mark.parametrize("value", [(1, 2), {1: "a"}, object(), float("nan"), {"a": {1, 2}}])
def test_a_value_that_json_would_change_is_refused(value):
    with pytest.raises(TypeError, match="serializer"):
        SmartCache().put([1.0, 0.0], value)


def test_a_serializer_holds_any_value():
    class Complex:
        def dumps(self, value):
            return repr(value).encode()

        def loads(self, data):
            return complex(data.decode())

    cache = SmartCache(serializer=Complex())
    cache.put([1.0, 0.0], 1 + 2j)
    assert cache.get_semantic_similar([1.0, 0.0]).value == 1 + 2j


def test_an_entry_that_the_serializer_cannot_read_is_a_miss_and_leaves(caplog):
    cache = SmartCache(serializer=Unreadable(), guard=None)
    cache.put(at_angle(1.0), BAD, query="a")
    cache.put(at_angle(0.99), BAD, query="b")
    assert cache.get("a") is None
    assert cache.get_semantic_similar(at_angle(1.0)) is None
    assert len(cache) == 0 and cache.get_many([at_angle(1.0)]) == [None]
    stats = cache.stats()
    assert (stats["hits"], stats["misses"], stats["removed"]) == (0, 3, {"unreadable": 2})
    assert len(caplog.records) == 1 and "a field of an older version" in caplog.text


def test_what_can_be_read_answers_in_place_of_an_unreadable_entry():
    cache = SmartCache(serializer=Unreadable(), guard=None)
    cache.put(at_angle(0.95), GOOD)
    for i in range(20):
        cache.put(at_angle(0.99), SimpleNamespace(name=f"bad {i}"))
    assert cache.get_semantic_similar(at_angle(1.0)).value == GOOD
    cache.put(at_angle(0.99), BAD)
    assert [entry.value for entry in cache] == [GOOD]
    assert cache.stats()["removed"] == {"unreadable": 21}


def test_a_value_without_the_serializer_that_wrote_it_is_an_error_and_stays(tmp_path):
    cache = SmartCache(serializer=Unreadable())
    cache.put([1.0, 0.0], GOOD, query="q")
    cache.save(tmp_path / "file")
    bare = SmartCache.load(tmp_path / "file")
    for _ in range(2):
        with pytest.raises(TypeError, match="serializer"):
            bare.get("q")


def test_a_stream_is_cached_as_the_list_of_its_parts():
    """Pain 14: streaming was not cached, or broken."""
    cache = SmartCache()
    cache.put([1.0, 0.0], list("abc"))
    assert "".join(cache.get_semantic_similar([1.0, 0.0]).value) == "abc"

    def stream(text):
        yield text

    with pytest.raises(TypeError, match="stream"):
        cache.cached(stream)


def test_a_hit_says_where_it_comes_from():
    clock = Clock()
    cache = SmartCache(clock=clock)
    entry = cache.put(
        at_angle(1.0), "v", query="q", context=("t", 1), tags=["x", "y", "x"], source="model-7"
    )
    clock.now += 5
    hit = cache.get_semantic_similar(at_angle(1.0), context=("t", 1))
    assert (hit.source, hit.tags, hit.age, hit.context) == ("model-7", ("x", "y"), 5.0, ("t", 1))
    assert hit.query == "q" and hit.entry == entry and not hit.exact and not hit.guarded


def test_the_kill_switch_turns_lookups_into_misses_and_puts_into_nothing(monkeypatch):
    monkeypatch.setenv("AIMO_DISABLE", "batch, cache")
    cache = SmartCache()
    assert cache.put([1.0, 0.0], "v", query="q") == 0
    assert cache.put_many([[1.0, 0.0]], ["v"]) == [0]
    assert cache.get("q") is None
    assert cache.get_semantic_similar([1.0, 0.0]) is None
    assert cache.get_many([[1.0, 0.0]]) == [None]
    assert cache.get_or_compute("q", str.upper) == "Q"
    assert len(cache) == 0 and cache.stats()["misses"] == 4


async def coroutine_embedder(texts):
    return np.ones((len(texts), 2), np.float32)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"capacity": 0}, ValueError),
        ({"max_bytes": 0}, ValueError),
        ({"ttl": 0}, ValueError),
        ({"ttl": -1}, ValueError),
        ({"policy": "fifo"}, ValueError),
        ({"mode": "both"}, ValueError),
        ({"row_dtype": "f32"}, ValueError),
        ({"guard": "strict"}, ValueError),
        ({"guard": [1]}, TypeError),
        ({"guard": 1}, TypeError),
        ({"capacity": "5"}, TypeError),
        ({"capacity": True}, TypeError),
        ({"max_bytes": 1.5}, TypeError),
        ({"keep_last": -1}, ValueError),
        ({"threshold": None}, TypeError),
        ({"ttl": "an hour"}, TypeError),
        ({"ttl": 10**400}, ValueError),
        ({"threshold": 10**400}, ValueError),
        ({"embedder": 5}, TypeError),
        ({"embedder": "all-MiniLM-L6-v2"}, TypeError),
        ({"embedder": coroutine_embedder}, TypeError),
        ({"serializer": object()}, TypeError),
        ({"space_id": 5}, TypeError),
        ({"normalize": 5}, TypeError),
        ({"clock": 5}, TypeError),
    ],
)
def test_a_bad_option_is_an_error_that_names_it(options, error):
    with pytest.raises(error, match=next(iter(options))):
        SmartCache(**options)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"ttl": 0}, ValueError),
        ({"cost": -1}, ValueError),
        ({"cost": float("nan")}, ValueError),
        ({"tags": "one"}, TypeError),
        ({"tags": [1]}, TypeError),
        ({"tags": None}, TypeError),
        ({"source": 1}, TypeError),
        ({"query": 1}, TypeError),
        ({"context": 1}, TypeError),
        ({"context": (1.5,)}, TypeError),
    ],
)
def test_a_bad_argument_of_put_is_an_error_and_stores_nothing(options, error):
    cache = SmartCache()
    with pytest.raises(error):
        cache.put([1.0, 0.0], "v", **options)
    assert len(cache) == 0
