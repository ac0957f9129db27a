"""What BatchEmbeddingProcessor counts, and how Prometheus reads it."""

from __future__ import annotations

import asyncio
import concurrent.futures

import pytest
from batching_helpers import run

from ai_model_optimizations import BatchEmbeddingProcessor
from ai_model_optimizations.embedding.metrics import BatchMetrics
from ai_model_optimizations.testing import FakeEmbedder


def test_metrics_count_what_happened() -> None:
    import json

    async def main() -> None:
        async with BatchEmbeddingProcessor(model=FakeEmbedder()) as processor:
            await asyncio.gather(*(processor.embed(f"{i}") for i in range(10)))
            await processor.embed("3")
            metrics = processor.metrics()
            assert metrics["requests"] == metrics["successes"] == 11
            assert metrics["texts"] == 10
            assert metrics["batches"] == metrics["batch_texts"]["count"]
            assert metrics["request_seconds"]["count"] == 11
            assert metrics["request_seconds"]["p50"] <= metrics["request_seconds"]["p99"]
            assert metrics["queue_texts"] == metrics["running_texts"] == 0
            json.dumps(metrics, allow_nan=False)

    run(main())


def test_metrics_lose_no_event_however_many_come_at_a_time() -> None:
    metrics = BatchMetrics()

    def many() -> None:
        for i in range(2000):
            metrics.accepted(joined=i % 2)
            metrics.answered([(0.001, 0.002)])

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(many) for _ in range(4)]:
            future.result()
    found = metrics.snapshot()
    assert found["requests"] == found["successes"] == 8000
    assert found["deduplicated_texts"] == 4000
    assert found["request_seconds"]["count"] == 8000
    assert metrics.snapshot() == found


def test_a_prometheus_registry_takes_several_processors_and_shows_each_family_once() -> None:
    prometheus_client = pytest.importorskip("prometheus_client")
    from prometheus_client.openmetrics import exposition, parser

    registry = prometheus_client.CollectorRegistry(auto_describe=True)  # as the default one
    processors = [BatchEmbeddingProcessor(model=FakeEmbedder()) for _ in range(2)]
    for processor, model in zip(processors, ("light", "heavy"), strict=True):
        processor.register_prometheus(registry, model=model)
    processors[1].process_batch_sync(["a"])
    text = exposition.generate_latest(registry).decode()
    families = {family.name: family for family in parser.text_string_to_metric_families(text)}
    counts = {s.labels["model"]: s.value for s in families["aimo_request_count"].samples}
    assert counts == {"light": 0.0, "heavy": 1.0}
    registry.register(processors[0].prometheus_collector(model="third"))
    text = exposition.generate_latest(registry).decode()
    assert 'aimo_request_count_total{model="third"} 0.0' in text


def test_prometheus_reads_the_metrics_under_text_embeddings_inference_like_names() -> None:
    prometheus_client = pytest.importorskip("prometheus_client")
    with BatchEmbeddingProcessor(model=FakeEmbedder()) as processor:
        processor.process_batch_sync(["a", "b"])
        registry = prometheus_client.CollectorRegistry()
        registry.register(processor.prometheus_collector(model="fake"))
        text = prometheus_client.generate_latest(registry).decode()
    assert 'aimo_request_count_total{model="fake"} 1.0' in text
    assert 'aimo_embed_count_total{model="fake"} 2.0' in text
    assert 'aimo_queue_size{model="fake"} 0.0' in text
    assert 'aimo_request_failure_total{err="timeout",model="fake"} 0.0' in text
    assert 'aimo_batch_next_size_bucket{le="2.0",model="fake"} 1.0' in text
    assert 'aimo_request_duration_count{model="fake"} 1.0' in text
