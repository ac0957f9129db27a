"""The older names: signatures, return shapes, and what they must not do."""

import asyncio
import functools
import gc
import inspect
import json
from typing import Any

import numpy as np
import pytest

import ai_model_optimizations
from ai_model_optimizations import (
    AdaptiveModelManager,
    BatchEmbeddingProcessor,
    Embedding,
    ModelPerformanceMetrics,
    OptimizedAIManager,
    SemanticCache,
    SpaceMismatchError,
    service_names,
)
from ai_model_optimizations.testing import FakeEmbedder


class SmallModel(FakeEmbedder):
    """What the quantizer makes in these tests."""


class OlderModelManager:
    """Loads its models when they are asked for, unloads them when idle, has no setters."""

    def __init__(self) -> None:
        self._english_sentence_model: Any = None
        self._turkish_sentence_model: Any = None
        self._text_generator_model: Any = None
        self.loads: list[str] = []
        self.kind = FakeEmbedder

    @property
    def english_sentence_model(self) -> Any:
        if self._english_sentence_model is None:
            self.loads.append("english")
            self._english_sentence_model = self.kind(8, space_id="english")
        return self._english_sentence_model

    @property
    def turkish_sentence_model(self) -> Any:
        if self._turkish_sentence_model is None:
            self.loads.append("turkish")
            self._turkish_sentence_model = self.kind(8, space_id="turkish")
        return self._turkish_sentence_model

    def unload_idle(self) -> None:
        self._english_sentence_model = self._turkish_sentence_model = None

    @functools.lru_cache(maxsize=10)  # noqa: B019
    def generate_embedding(self, text: str) -> list[float]:
        return [float(x) for x in self.english_sentence_model.encode([text])[0]]


class FakeQuantizer:
    """Makes a SmallModel of a model; refuses some."""

    def __init__(self) -> None:
        self.given: list[Any] = []

    def quantize_model(self, model: Any) -> Any:
        self.given.append(model)
        if not isinstance(model, FakeEmbedder):
            raise TypeError("not a sentence model")
        return SmallModel(model.dimension, space_id=model.space_id)


@pytest.fixture
def models() -> OlderModelManager:
    return OlderModelManager()


@pytest.fixture
def manager(models: OlderModelManager) -> OptimizedAIManager:
    manager = OptimizedAIManager(models)
    manager.quantizer = FakeQuantizer()  # type: ignore[assignment]
    return manager


SIGNATURES = {
    "BatchEmbeddingProcessor.process_batch_embeddings": "texts model priority",
    "AdaptiveModelManager.__init__": "model_manager",
    "AdaptiveModelManager.select_optimal_model": (
        "query response_time_requirement quality_priority"
    ),
    "AdaptiveModelManager.get_model_for_query": "query kwargs",
    "AdaptiveModelManager.update_performance_metrics": "model_type processing_time memory_usage",
    "SemanticCache.__init__": "max_size similarity_threshold ttl",
    "SemanticCache.get_cached_response": "query query_embedding context",
    "SemanticCache.cache_response": "query response query_embedding context source",
    "SemanticCache.get_cache_statistics": "",
    "SemanticCache.clear_cache": "",
    "OptimizedAIManager.__init__": "model_manager",
    "OptimizedAIManager.generate_optimized_embedding": "text use_cache quality_priority",
    "OptimizedAIManager.generate_optimized_embeddings_batch": "texts use_cache",
    "OptimizedAIManager.get_optimization_statistics": "",
    "OptimizedAIManager.clear_all_caches": "",
    "OptimizedAIManager.optimize_model_memory": "force_optimization",
    "get_optimized_ai_manager": "model_manager",
    "generate_optimized_embedding": "text model_manager kwargs",
    "generate_optimized_embeddings_batch": "texts model_manager kwargs",
    "optimize_model_memory": "model_manager kwargs",
    "optimize_loaded_models": "model_manager kwargs",
    "clear_all_caches": "model_manager",
    "get_optimization_stats": "model_manager",
}
DEFAULTS = {
    "priority": "normal", "response_time_requirement": 1000, "quality_priority": False,
    "max_size": 1000, "similarity_threshold": 0.85, "ttl": 3600, "query_embedding": None,
    "context": "", "source": "ai_model", "use_cache": True, "force_optimization": False,
    "model_manager": None,
}  # fmt: skip


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_signatures_are_the_older_ones(name: str) -> None:
    found: Any = ai_model_optimizations
    for part in name.split("."):
        found = getattr(found, part)
    parameters = {n: p for n, p in inspect.signature(found).parameters.items() if n != "self"}
    assert list(parameters) == SIGNATURES[name].split()
    for parameter, value in DEFAULTS.items():
        if parameter in parameters:
            assert parameters[parameter].default == value


def test_every_older_name_is_the_packages_too() -> None:
    for name in service_names.__all__:
        assert getattr(ai_model_optimizations, name) is getattr(service_names, name)
        assert name in ai_model_optimizations.__all__


def test_performance_metrics_are_plain_numbers_and_the_hit_rate_is_in_percent() -> None:
    metrics = ModelPerformanceMetrics(cache_hits=3, cache_misses=1)
    assert list(metrics.__dict__) == [
        "total_requests", "total_processing_time", "cache_hits", "cache_misses", "sets",
        "memory_usage_mb", "average_response_time", "throughput_per_second",
    ]  # fmt: skip
    assert metrics.cache_hit_rate == 75.0 and ModelPerformanceMetrics().cache_hit_rate == 0.0


def test_figures_can_be_read_before_the_first_request() -> None:
    assert vars(BatchEmbeddingProcessor().performance_metrics)["total_requests"] == 0
    found = OptimizedAIManager().get_optimization_statistics()
    assert json.loads(json.dumps(found))["batch_processor_stats"]["average_response_time"] == 0.0


def test_the_batch_processor_embeds_with_any_model_into_lists() -> None:
    own, other = FakeEmbedder(4, space_id="own"), FakeEmbedder(6, space_id="other")

    async def embed() -> None:
        async with BatchEmbeddingProcessor(batch_size=2, model=own) as processor:
            rows = await processor.process_batch_embeddings(["a", "b", "c"], other, "high")
            assert [type(row) for row in rows] == [Embedding] * 3
            assert rows[0] == other.vector("a").tolist() and rows[0].space_id == "other"
            assert [len(batch) for batch in other.batches] == [2, 1]
            (row,) = await processor.process_batch_embeddings(["a"])
            assert row == own.vector("a").tolist() and row.space_id == "own"
            assert await processor.process_batch_embeddings([], other) == []
            assert processor.performance_metrics.total_requests == 4
            with pytest.raises(TypeError, match=r"texts\[1\]: expected str"):
                await processor.process_batch_embeddings(["a", 3], other)  # type: ignore[list-item]
            with pytest.raises(TypeError, match=r"texts\[70000\]: expected str, got int"):
                many = [*["a"] * 70_000, 3]
                await processor.process_batch_embeddings(many, other)  # type: ignore[arg-type]
            assert len(other.batches) == 2
            with pytest.raises(ValueError, match="priority"):
                await processor.process_batch_embeddings(["a"], other, "urgent")  # type: ignore[arg-type]
            other.fail_on = {"bad"}
            with pytest.raises(RuntimeError, match="told to fail"):
                await processor.process_batch_embeddings(["bad"], other)

    asyncio.run(embed())


def test_the_adaptive_manager_chooses_without_loading(models: OlderModelManager) -> None:
    adaptive = AdaptiveModelManager(models)
    assert adaptive.select_optimal_model("Where is my card?") == "light"
    assert adaptive.select_optimal_model("Where is my card?", quality_priority=True) == "heavy"
    assert adaptive.select_optimal_model("Kartım nerede, henüz gelmedi?") == "heavy"
    adaptive.update_performance_metrics("heavy", 2.0, 400.0)
    assert adaptive.select_optimal_model("x", 1000, quality_priority=True) == "light"
    assert adaptive.select_optimal_model("x", 3000, quality_priority=True) == "heavy"
    assert models.loads == []
    assert adaptive.get_model_for_query("x").space_id == "english"
    turkish = adaptive.get_model_for_query("Kartım nerede?", response_time_requirement=5000)
    assert turkish.space_id == "turkish"
    assert adaptive.model_performance["heavy"].average_response_time == 2.0
    assert AdaptiveModelManager().get_model_for_query("x") is None
    with pytest.raises(ValueError, match="model_type"):
        adaptive.update_performance_metrics("medium", 1.0, 1.0)
    before = vars(adaptive.model_performance["light"]).copy()
    for wrong in ((None, 1.0), (-1.0, 1.0), (float("nan"), 1.0), (1.0, "400")):
        with pytest.raises(ValueError, match=r"processing_time|memory_usage"):
            adaptive.update_performance_metrics("light", *wrong)  # type: ignore[arg-type]
    assert vars(adaptive.model_performance["light"]) == before


def test_the_semantic_cache_answers_by_text_and_meaning_and_counts_once() -> None:
    cache = SemanticCache(max_size=10, similarity_threshold=0.9, ttl=60)
    near, far = [1.0, 0.1, 0.0], [0.0, 0.0, 1.0]
    assert cache.get_cached_response("how much?", [1.0, 0.0, 0.0]) is None
    cache.cache_response("how much?", "5 euros", [1.0, 0.0, 0.0])
    cache.cache_response("only text", {"a": [1]}, source="static")
    assert cache.get_cached_response("how much?") == ("5 euros", "ai_model", 1.0)
    response, source, similarity = cache.get_cached_response("how much please?", near) or (0, 0, 0)
    assert (response, source) == ("5 euros", "ai_model") and 0.99 < similarity < 1.0
    assert cache.get_cached_response("only  text") == ({"a": [1]}, "static", 1.0)
    assert cache.get_cached_response("something", far) is None
    assert cache.get_cached_response("how much?", near, context="other") is None
    assert cache.get_cached_response("   ", near) is None
    assert cache.get_cached_response("what", Embedding()) is None
    statistics = cache.get_cache_statistics()
    assert statistics["total_hits"] == 3 and statistics["total_misses"] == 5
    assert statistics["hit_rate"] == 3 / 8 and statistics["total_sets"] == 2
    assert statistics["exact_cache_size"] == 2 and statistics["semantic_cache_size"] == 1
    assert list(statistics) == [
        "exact_cache_size", "semantic_cache_size", "max_size", "similarity_threshold",
        "ttl_seconds", "hit_rate", "total_hits", "total_misses", "total_sets",
        "memory_estimate_mb",
    ]  # fmt: skip
    cache.clear_cache()
    assert cache.get_cached_response("how much?", near) is None
    with pytest.raises(TypeError, match="query"):
        cache.get_cached_response(3)  # type: ignore[arg-type]


def test_the_semantic_cache_refuses_another_models_vector() -> None:
    cache = SemanticCache()
    cache.cache_response("a", "1", Embedding([1.0, 0.0], "english"))
    with pytest.raises(SpaceMismatchError):
        cache.get_cached_response("b", Embedding([1.0, 0.0], "turkish"))


def test_embeddings_are_lists_of_one_model_and_cached_by_exact_text(
    manager: OptimizedAIManager, models: OlderModelManager
) -> None:
    async def embed() -> None:
        first = await manager.generate_optimized_embedding("Where is my card?")
        again = await manager.generate_optimized_embedding("Where is my card?")
        assert isinstance(first, Embedding) and isinstance(first, list)
        assert first == again and first.space_id == "english"
        # A Turkish text later does not bring a second model's vectors in.
        turkish = await manager.generate_optimized_embedding("Kartım nerede, henüz gelmedi?")
        assert turkish.space_id == "english"
        rows = await manager.generate_optimized_embeddings_batch(["a", "", "a", "b"])
        assert [bool(row) for row in rows] == [True, False, True, True] and rows[0] == rows[2]
        await manager.generate_optimized_embedding("a", use_cache=False)
        with pytest.raises(TypeError):
            await manager.generate_optimized_embedding(None)  # type: ignore[arg-type]

    asyncio.run(embed())
    assert models.loads == ["english"]
    batches = models.english_sentence_model.batches
    assert batches[0] == ["Where is my card?"] and sorted(batches[2]) == ["a", "b"]
    assert batches[3] == ["a"]
    statistics = manager.get_optimization_statistics()
    assert statistics["embedding_cache_stats"]["hits"] == 1
    json.dumps(statistics)


def test_a_failed_embedding_is_empty_and_never_cached(
    manager: OptimizedAIManager, models: OlderModelManager
) -> None:
    model = models.english_sentence_model
    model.fail_on, model.nan_on = {"bad"}, {"nan"}
    for text in ("bad", "nan"):
        assert not asyncio.run(manager.generate_optimized_embedding(text))
    model.fail_on, model.nan_on = set(), set()
    for text in ("bad", "nan"):
        assert asyncio.run(manager.generate_optimized_embedding(text))
    assert manager.get_optimization_statistics()["embedding_failures"] == 2


def test_optimizing_loads_nothing_and_quantizes_what_is_loaded_and_what_comes(
    manager: OptimizedAIManager, models: OlderModelManager
) -> None:
    loaded = models.english_sentence_model
    models._text_generator_model = "a pipeline"
    models.generate_embedding("a")
    report = manager.optimize_model_memory()
    assert models.loads == ["english"]
    assert type(models.english_sentence_model) is SmallModel
    assert models.generate_embedding.cache_info().currsize == 0
    assert report["optimized_models"] == ["_english_sentence_model"]
    assert report["waiting_models"] == ["_turkish_sentence_model"]
    assert "not a sentence model" in report["skipped_models"]["_text_generator_model"]
    assert type(models.turkish_sentence_model) is SmallModel  # before its first use
    models.unload_idle()
    assert models._english_sentence_model is None
    assert type(models.english_sentence_model) is SmallModel
    assert models.loads == ["english", "turkish", "english"]
    assert isinstance(models, OlderModelManager)
    given = len(manager.quantizer.given)  # type: ignore[attr-defined]
    manager.optimize_model_memory()
    assert len(manager.quantizer.given) == given  # type: ignore[attr-defined]
    manager.optimize_model_memory(force_optimization=True)
    assert len(manager.quantizer.given) == given + 1  # type: ignore[attr-defined]
    assert loaded is not models.english_sentence_model


def test_a_manager_with_slots_is_served_too() -> None:
    class Slotted:
        __slots__ = ("_english_sentence_model",)

        def __init__(self) -> None:
            self._english_sentence_model = FakeEmbedder()

    models = Slotted()
    manager = OptimizedAIManager(models)
    manager.quantizer = FakeQuantizer()  # type: ignore[assignment]
    assert manager.optimize_model_memory()["optimized_models"] == ["_english_sentence_model"]
    models._english_sentence_model = FakeEmbedder()
    assert type(models._english_sentence_model) is SmallModel


def test_a_replaced_model_is_freed(manager: OptimizedAIManager, models: OlderModelManager) -> None:
    import weakref

    reference = weakref.ref(models.english_sentence_model)
    manager.optimize_model_memory()
    manager.quantizer.given.clear()  # type: ignore[attr-defined]
    gc.collect()
    assert reference() is None


def test_setting_another_model_manager_begins_anew(manager: OptimizedAIManager) -> None:
    async def embed() -> Embedding:
        return await manager.generate_optimized_embedding("Where is my card?")

    first = asyncio.run(embed())
    manager.semantic_cache.cache_response("q", "a", first)
    other = OlderModelManager()
    other._english_sentence_model = FakeEmbedder(4, space_id="new")
    manager.model_manager = other
    second = asyncio.run(embed())
    assert second.space_id == "new" and len(second) == 4
    assert manager.semantic_cache.get_cached_response("q", second) is None


def test_clear_all_caches_empties_the_model_managers_own(
    manager: OptimizedAIManager, models: OlderModelManager
) -> None:
    models.generate_embedding("a")
    asyncio.run(manager.generate_optimized_embedding("a"))
    manager.clear_all_caches()
    assert models.generate_embedding.cache_info().currsize == 0
    assert manager.get_optimization_statistics()["embedding_cache_stats"]["entries"] == 0


def test_a_manager_that_only_embeds_is_used_as_it_is() -> None:
    class Plain:
        def generate_embedding(self, text: str) -> list[float]:
            return [float(len(text)), 1.0]

    rows = asyncio.run(OptimizedAIManager(Plain()).generate_optimized_embeddings_batch(["a", "bb"]))
    assert rows == [[1.0, 1.0], [2.0, 1.0]]


def test_the_module_functions_share_one_manager(
    models: OlderModelManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_names, "_one", None)
    one = service_names.get_optimized_ai_manager()
    assert service_names.get_optimized_ai_manager(models) is one and one.model_manager is models
    one.quantizer = FakeQuantizer()  # type: ignore[assignment]

    async def embed() -> None:
        row = await service_names.generate_optimized_embedding("a", models, use_cache=False)
        assert row.space_id == "english"
        rows = await service_names.generate_optimized_embeddings_batch(["a", "b"])
        assert [len(row) for row in rows] == [8, 8]

    asyncio.run(embed())
    assert service_names.optimize_loaded_models(force_optimization=True)["optimized_models"]
    assert service_names.optimize_model_memory()["waiting_models"]
    assert service_names.get_optimization_stats()["quantized_models"] == 1
    service_names.clear_all_caches()


def test_the_real_quantizer_halves_a_real_model_in_its_slot(minilm_path: Any) -> None:
    from ai_model_optimizations import EmbeddingModel

    models = OlderModelManager()
    models._english_sentence_model = EmbeddingModel.load(minilm_path, dtype="f32")
    before = models._english_sentence_model.encode("How do I open an account?")
    manager = OptimizedAIManager(models)
    report = manager.optimize_model_memory()
    assert report["memory_after_mb"] < 0.51 * report["memory_before_mb"]
    after = asyncio.run(manager.generate_optimized_embedding("How do I open an account?"))
    assert float(np.dot(after, before)) > 0.9999
