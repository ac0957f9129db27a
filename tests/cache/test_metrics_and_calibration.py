import gc
import math
import random
import sys
import threading

import numpy as np
import pytest
from helpers import TableEmbedder, at_angle

from ai_model_optimizations.cache import LabelledPair, ShadowHit, SmartCache
from ai_model_optimizations.cache.calibration import wilson_upper
from ai_model_optimizations.cache.index_optimizer import IndexOptimizer


def test_every_lookup_is_counted_once():
    """Pain 10: no metrics."""
    cache = SmartCache(context_stats=True)
    cache.put(at_angle(1.0), "v", query="open it", context="a", cost=2.5)
    cache.get("open it", context="a")
    cache.get("what?", context="a")
    cache.get_semantic_similar(at_angle(1.0), context="a")
    cache.get_semantic_similar(at_angle(1.0), context="a", query="close it")
    cache.get_semantic_similar(at_angle(1.0), context="b")
    cache.get_many([at_angle(1.0), at_angle(1.0, plane=1)], context="a")
    stats = cache.stats()
    assert (stats["lookups"], stats["hits"], stats["misses"]) == (7, 3, 4)
    assert stats["exact_hits"] == 1 and stats["unguarded_hits"] == 2
    assert stats["rejected"] == {"antonym": 1} and stats["hit_rate"] == 3 / 7
    assert stats["cost_saved"] == 7.5 and stats["puts"] == 1
    assert sum(stats["lookup_seconds"].values()) == 7 and stats["lookup_seconds_sum"] > 0
    assert cache.context_stats("a") == {"hits": 3, "misses": 3, "rejected": 1}
    assert cache.context_stats("b") == {"hits": 0, "misses": 1, "rejected": 0}
    assert next(iter(cache)).hits == 3
    with pytest.raises(ValueError, match="context_stats"):
        SmartCache().context_stats("a")


def test_cleared_entries_are_counted_among_those_that_left():
    cache = SmartCache()
    cache.clear()
    assert cache.stats()["removed"] == {}
    cache.put_many([at_angle(1.0), at_angle(0.5)], ["a", "b"])
    cache.clear()
    cache.put(at_angle(1.0), "c")
    stats = cache.stats()
    assert stats["removed"] == {"cleared": 2}
    assert stats["puts"] == stats["entries"] + sum(stats["removed"].values())


def test_prometheus_scrapes_the_same_numbers():
    prometheus = pytest.importorskip("prometheus_client")
    cache = SmartCache()
    registry = prometheus.CollectorRegistry()
    registry.register(cache.prometheus_collector("answers"))
    cache.put(at_angle(1.0), "v", query="open it")
    cache.get_semantic_similar(at_angle(1.0))
    cache.get_semantic_similar(at_angle(1.0), query="close it")
    text = prometheus.generate_latest(registry).decode()
    assert 'aimo_cache_hits_total{cache="answers"} 1.0' in text
    assert 'aimo_cache_rejected_total{cache="answers",reason="antonym"} 1.0' in text
    assert 'aimo_cache_lookup_seconds_count{cache="answers"} 2.0' in text


def test_a_registry_takes_several_caches_and_shows_each_family_once():
    prometheus = pytest.importorskip("prometheus_client")
    registry = prometheus.CollectorRegistry(auto_describe=True)  # as the default one
    caches = {name: SmartCache() for name in ("answers", "titles")}
    for name in ("answers", "titles", "answers"):
        caches[name].register_prometheus(registry, name)
    caches["titles"].put(at_angle(1.0), "v")
    families = families_of(registry)
    assert sample(families, "aimo_cache_puts_total") == {"answers": 0.0, "titles": 1.0}
    assert len(families["aimo_cache_lookup_seconds"].samples) >= 6
    with pytest.raises(TypeError, match="name"):
        SmartCache().prometheus_collector(5)
    with pytest.raises(TypeError, match="name"):
        SmartCache().register_prometheus(registry, 5)


def test_a_registry_takes_several_collectors_as_well():
    prometheus = pytest.importorskip("prometheus_client")
    registry = prometheus.CollectorRegistry(auto_describe=True)
    for name in ("answers", "titles"):
        registry.register(SmartCache().prometheus_collector(name))
    text = prometheus.generate_latest(registry).decode()
    assert 'aimo_cache_puts_total{cache="answers"} 0.0' in text
    assert 'aimo_cache_puts_total{cache="titles"} 0.0' in text


def test_a_registry_keeps_no_cache_alive_and_shows_the_latest_of_a_name():
    prometheus = pytest.importorskip("prometheus_client")
    registry, other = prometheus.CollectorRegistry(), prometheus.CollectorRegistry()
    first, second = SmartCache(), SmartCache()
    first.put(at_angle(1.0), "v")
    first.register_prometheus(other)
    for cache in (first, second):
        cache.register_prometheus(registry)
    assert sample(families_of(registry), "aimo_cache_puts_total") == {"default": 0.0}
    assert sample(families_of(other), "aimo_cache_puts_total") == {"default": 1.0}
    del first, cache, second
    gc.collect()
    assert families_of(registry) == families_of(other) == {}


def families_of(registry):
    """The families of a scrape, which a strict reader refuses when one stands twice."""
    from prometheus_client.openmetrics.exposition import generate_latest
    from prometheus_client.openmetrics.parser import text_string_to_metric_families

    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {family.name: family for family in families}


def sample(families, name):
    """The values of a sample, by the name of the cache."""
    samples = families[name.removesuffix("_total")].samples
    return {each.labels["cache"]: each.value for each in samples if each.name == name}


def test_without_prometheus_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client.core", None)
    with pytest.raises(ImportError, match=r"ai-model-optimizations\[prometheus\]"):
        SmartCache().prometheus_collector()
    with pytest.raises(ImportError, match=r"ai-model-optimizations\[prometheus\]"):
        SmartCache().register_prometheus()


def test_threads_lose_no_count_and_get_no_answer_of_another():
    rng = np.random.default_rng(6)
    rows = rng.standard_normal((64, 16)).astype(np.float32)
    cache = SmartCache(capacity=40, ttl=None, threshold=0.99, guard=None)
    rounds, errors = 1500, []

    def work(seed):
        local = random.Random(seed)
        try:
            for _ in range(rounds):
                pick = local.randrange(64)
                context = f"c{pick % 4}"
                if local.random() < 0.3:
                    cache.put(rows[pick], pick, query=f"q{pick}", context=context)
                elif local.random() < 0.02:
                    cache.invalidate(context=context)
                else:
                    hit = cache.get_semantic_similar(rows[pick], context=context)
                    if hit is not None and (hit.value != pick or hit.context != context):
                        errors.append((pick, hit))
        except Exception as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)
    assert errors == []
    stats = cache.stats()
    assert stats["lookups"] == sum(stats["lookup_seconds"].values())
    assert stats["puts"] == stats["entries"] + sum(stats["removed"].values())
    assert stats["entries"] <= 40 and len(cache._table.index) == stats["entries"]


def test_the_index_learns_each_time_it_has_doubled_in_a_thread_of_its_own():
    class Index:
        learnt = 0

        def optimize(self):
            self.learnt += 1

    index, optimizer = Index(), IndexOptimizer()
    for rows in range(1, 3000):
        optimizer.grown(index, rows, rows)
        if optimizer.thread is not None:
            optimizer.thread.join()
    assert index.learnt == 4  # at 256, 512, 1024 and 2048
    for puts in range(3000, 3000 + 10 * 2048):  # of which each replaces another
        optimizer.grown(index, 2048, puts)
        if optimizer.thread is not None:
            optimizer.thread.join()
    assert index.learnt == 4 + 2


# -- calibration ------------------------------------------------------------------------------


def pairs_of(rng, count, wrong_below=0.9):
    for _ in range(count):
        similarity = rng.uniform(0.6, 1.0)
        wrong = rng.random() < (0.3 if similarity < wrong_below else 0.002)
        yield similarity, not wrong


def test_the_threshold_is_the_lowest_that_meets_the_bound():
    cache = SmartCache(threshold=0.5)
    pairs = list(pairs_of(random.Random(1), 8000))
    result = cache.calibrate(pairs, max_false_hit_rate=0.02, show=False)
    assert cache.threshold == result.threshold
    assert 0.87 < result.threshold < 0.91
    for point in result.curve[::40]:
        hits = [same for similarity, same in pairs if similarity >= point.threshold]
        assert point.hits == len(hits) and point.wrong == hits.count(False)
        assert point.upper_bound <= 0.02 or point.threshold != result.threshold
        assert point.threshold >= result.threshold or point.upper_bound > 0.02


def test_without_enough_evidence_the_threshold_stays():
    cache = SmartCache(threshold=0.8)
    result = cache.calibrate([(0.9, True)] * 20, show=False)
    assert result.threshold is None and cache.threshold == 0.8
    assert "no threshold meets the bound" in str(result)


def test_the_guard_has_a_part_in_the_curve():
    pairs = [LabelledPair(0.95, False, "open it", "close it")] * 50
    pairs += [LabelledPair(0.95, True, "open it", "please open it")] * 300
    guarded = SmartCache().calibrate(pairs, show=False)
    bare = SmartCache(guard=None).calibrate(pairs, show=False)
    assert guarded.refused_by_guard == 50 and guarded.threshold is not None
    assert bare.refused_by_guard == 0 and bare.threshold is None


def test_pairs_of_texts_are_embedded_once(capsys):
    embedder = TableEmbedder({"a": at_angle(1.0), "b": at_angle(0.9)})
    cache = SmartCache(embedder=embedder)
    result = cache.calibrate([("a", "b", True)] * 200, apply=False)
    assert result.threshold == pytest.approx(0.9, abs=1e-3) and cache.threshold == 0.85
    assert len(embedder.calls) == 1 and sorted(embedder.calls[0]) == ["a", "b"]
    printed = capsys.readouterr().out
    assert "wrong/hits" in printed and f"chosen: {result.threshold:.4f}" in printed
    with pytest.raises(TypeError, match="embedder"):
        SmartCache().calibrate([("a", "b", True)])


def test_shadow_hits_become_pairs():
    hit = ShadowHit("q", "c", 0.93, "", 7, 0.93)
    assert LabelledPair.of(hit, same=False) == LabelledPair(0.93, False, "q", "c")


def test_the_curve_is_drawn_as_svg():
    import xml.etree.ElementTree as ElementTree

    result = SmartCache().calibrate(list(pairs_of(random.Random(2), 500)), show=False)
    root = ElementTree.fromstring(result.svg())
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) >= 4
    for line in lines:
        for point in line.get("points").split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= 640 and 0 <= y <= 360


@pytest.mark.parametrize(
    ("wrong", "total", "expected"),
    [(0, 0, 1.0), (0, 100, 0.02634), (5, 100, 0.09916), (100, 100, 1.0)],
)
def test_the_wilson_bound_is_the_known_one(wrong, total, expected):
    assert wilson_upper(wrong, total, 0.95) == pytest.approx(expected, abs=2e-4)


def test_the_wilson_bound_covers_as_often_as_it_says():
    rng = np.random.default_rng(7)
    true, total = 0.02, 400
    wrong = rng.binomial(total, true, 4000)
    covered = np.mean([wilson_upper(int(w), total, 0.95) >= true for w in wrong])
    assert covered > 0.93 and math.isfinite(covered)


@pytest.mark.parametrize(
    "options",
    [{"max_false_hit_rate": 0.0}, {"max_false_hit_rate": 1.0}, {"confidence": 0.4}],
)
def test_bad_options_of_calibrate_are_errors(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SmartCache().calibrate([(0.9, True)], **options)
    with pytest.raises(ValueError, match="empty"):
        SmartCache().calibrate([])


@pytest.mark.parametrize("pair", [(math.nan, True), (math.inf, True), LabelledPair(math.nan, True)])
def test_a_similarity_that_is_no_number_is_an_error_and_leaves_the_threshold(pair):
    cache = SmartCache(threshold=0.8)
    with pytest.raises(ValueError, match=r"pairs\[200\]"):
        cache.calibrate([(0.9, True)] * 200 + [pair] * 200, show=False)
    assert cache.threshold == 0.8
    with pytest.raises(TypeError, match=r"pairs\[0\]"):
        cache.calibrate([0.9, 0.8])
