"""JSON, Prometheus and OpenTelemetry say what the monitor says."""

import json
from typing import Any

import pytest

from ai_model_optimizations.memory_monitor import MemoryMonitor, metrics


def test_json_is_strict(monitor: MemoryMonitor) -> None:
    def refuse(text: str) -> None:
        raise AssertionError(text)

    status = json.loads(metrics.to_json(), parse_constant=refuse)
    assert status["current_memory_mb"] > 5


def test_measurements_have_the_snapshots_values(monitor: MemoryMonitor) -> None:
    monitor.configure(memory_threshold_mb=100)
    values = {entry.prometheus: entry.value for entry in metrics.measurements()}
    assert values["aimo_memory_resident_bytes"] > 5 << 20
    assert values["aimo_memory_threshold_bytes"] == 100 << 20
    assert values["aimo_memory_peak_bytes"] >= values["aimo_memory_resident_bytes"]
    assert all(name.startswith("aimo_") for name in values)


def test_a_prometheus_registry_has_one_collector_however_often_it_is_registered() -> None:
    client = pytest.importorskip("prometheus_client")
    registry = client.CollectorRegistry()
    for _ in range(3):
        collector = metrics.register_prometheus(registry)
    assert list(registry._collector_to_names) == [collector]
    registry.unregister(collector)
    assert list(registry._collector_to_names) == []
    metrics.register_prometheus(registry)
    assert client.generate_latest(registry).decode().count("# HELP aimo_memory_resident_bytes") == 1


def test_prometheus_serves_the_figures_under_own_names(monitor: MemoryMonitor) -> None:
    client = pytest.importorskip("prometheus_client")
    registry = client.CollectorRegistry()
    client.ProcessCollector(registry=registry)
    client.GCCollector(registry=registry)
    metrics.register_prometheus(registry)
    assert monitor.snapshots == []  # registering measures nothing
    monitor.configure(memory_threshold_mb=1)
    monitor._tick()
    text = client.generate_latest(registry).decode()
    assert "aimo_memory_warnings_total 1.0" in text
    assert 'aimo_gc_collections_total{generation="2"}' in text
    assert registry.get_sample_value("aimo_memory_resident_bytes") > 5 << 20
    assert registry.get_sample_value("aimo_memory_level") == 3
    families = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(families) == len(set(families))


def test_opentelemetry_gets_its_conventions_names(monitor: MemoryMonitor) -> None:
    sdk = pytest.importorskip("opentelemetry.sdk.metrics")
    export = pytest.importorskip("opentelemetry.sdk.metrics.export")
    reader = export.InMemoryMetricReader()
    provider = sdk.MeterProvider(metric_readers=[reader])
    names = metrics.register_opentelemetry(provider.get_meter("test"))
    assert {"process.memory.usage", "process.memory.virtual", "cpython.gc.collections"} <= {*names}
    data: Any = reader.get_metrics_data()
    found = {
        metric.name: [point.value for point in metric.data.data_points]
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    assert set(found) == set(names)
    assert found["process.memory.usage"][0] > 5 << 20
    assert len(found["cpython.gc.collections"]) == 3
    provider.shutdown()
