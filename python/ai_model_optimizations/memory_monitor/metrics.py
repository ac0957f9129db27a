"""The monitor's measurements for other systems: JSON, Prometheus, OpenTelemetry.

All of them read the last snapshot. Prometheus names carry the prefix ``aimo_`` because
``process_*`` and ``python_gc_*`` belong to the client's own collectors; OpenTelemetry names are
those of its semantic conventions, and what has none there is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from .alarms import LEVELS
from .limits import MIB
from .monitor import MemoryMonitor, shared_monitor

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import CollectorRegistry


@dataclass(frozen=True, slots=True)
class Measurement:
    """One number and its name in each system; an empty name leaves it out of that system."""

    prometheus: str
    opentelemetry: str
    unit: str
    help: str
    value: float
    counter: bool = False


def to_json(monitor: MemoryMonitor | None = None) -> str:
    """``get_memory_status()`` as strict JSON text."""
    status = (monitor or shared_monitor()).get_memory_status()
    return json.dumps(status, allow_nan=False)


def measurements(monitor: MemoryMonitor | None = None) -> list[Measurement]:
    """Return the current measurements, in bytes and counts."""
    monitor = monitor or shared_monitor()
    snapshot, stats = monitor.latest, monitor.get_stats()
    memory = snapshot.process
    found = [
        _bytes("resident", "process.memory.usage", "Resident set size.", memory.rss),
        _bytes("virtual", "process.memory.virtual", "Virtual size.", memory.virtual),
        _bytes("anonymous", "", "Resident heap and stacks.", memory.anonymous),
        _bytes("file_mapped", "", "Resident pages of mapped files.", memory.file_mapped),
        _bytes("swapped", "", "Swapped out.", memory.swapped),
        _bytes("peak", "", "Highest resident set size so far.", memory.peak),
        _bytes("threshold", "", "The alarm's threshold.", monitor.memory_threshold_mb * MIB),
        Measurement(
            "aimo_memory_level",
            "",
            "1",
            "0 normal, 1 elevated, 2 high, 3 critical.",
            LEVELS.index(monitor.level),
        ),
        Measurement("aimo_threads", "process.thread.count", "{thread}", "Threads.", memory.threads),
        Measurement(
            "aimo_open_files",
            "process.open_file_descriptor.count",
            "{file_descriptor}",
            "Open file descriptors.",
            snapshot.open_files,
        ),
        Measurement(
            "aimo_active_connections",
            "",
            "{connection}",
            "Active connections.",
            snapshot.active_connections,
        ),
        _count("aimo_memory_warnings", "Threshold alarms.", stats["memory_warnings"]),
        _count("aimo_leak_alerts", "Alarms about steady growth.", stats["leak_alerts"]),
        _count("aimo_memory_monitor_errors", "Errors while monitoring.", monitor.errors),
    ]
    if snapshot.allocator["known"]:
        found += [
            _bytes("allocator_live", "", "Held by the C heap's users.", snapshot.allocator["live"]),
            _bytes(
                "allocator_retained",
                "",
                "Freed, and kept by the C allocator.",
                snapshot.allocator["retained"],
            ),
        ]
    if snapshot.container is not None:
        container = snapshot.container
        found += [
            _bytes("container_limit", "", "The container's limit.", container.limit),
            _bytes("container_usage", "container.memory.usage", "Its use.", container.usage),
            _bytes(
                "container_working_set",
                "container.memory.working_set",
                "Its use without inactive file pages.",
                container.working_set,
            ),
            _bytes(
                "container_available",
                "container.memory.available",
                "Bytes left before its limit.",
                container.available,
            ),
        ]
    return found


def _bytes(name: str, opentelemetry: str, text: str, value: float) -> Measurement:
    return Measurement(f"aimo_memory_{name}_bytes", opentelemetry, "By", text, value)


def _count(name: str, text: str, value: float) -> Measurement:
    return Measurement(name, "", "1", text, value, counter=True)


class MemoryCollector:
    """A collector for ``prometheus_client``; register it with :func:`register_prometheus`.

    It reads the last snapshot, so a scrape costs the process nothing. Custom collectors do not work
    in the client's multiprocess mode; there, let each worker serve its own port.
    """

    def __init__(self, monitor: MemoryMonitor | None = None) -> None:
        self._monitor = monitor or shared_monitor()

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families with their current values."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        for entry in measurements(self._monitor):
            family = CounterMetricFamily if entry.counter else GaugeMetricFamily
            yield family(entry.prometheus, entry.help, value=entry.value)

        generations = CounterMetricFamily(
            "aimo_gc_collections", "Garbage collections by generation.", labels=["generation"]
        )
        for number, row in enumerate(self._monitor.latest.gc_stats()):
            generations.add_metric([str(number)], row["collections"])
        yield generations

    def describe(self) -> Iterable[Metric]:
        """Return nothing: registering must not measure; a scrape gives the families."""
        return ()


_collectors: WeakKeyDictionary[CollectorRegistry, MemoryCollector] = WeakKeyDictionary()


def register_prometheus(
    registry: CollectorRegistry | None = None, monitor: MemoryMonitor | None = None
) -> MemoryCollector:
    """Register a :class:`MemoryCollector`, in the client's default registry unless one is given.

    Calling it again is harmless: a registry keeps only the latest collector.
    """
    from prometheus_client import REGISTRY

    registry = REGISTRY if registry is None else registry
    collector = MemoryCollector(monitor)
    with suppress(KeyError):  # there is none yet, or its owner removed it
        registry.unregister(_collectors[registry])
    registry.register(collector)
    _collectors[registry] = collector
    return collector


def register_opentelemetry(meter: Any, monitor: MemoryMonitor | None = None) -> list[str]:
    """Create observable instruments on an OpenTelemetry `meter`; returns their names.

    Only measurements that have a name in the semantic conventions are exported.
    """
    from opentelemetry.metrics import Observation

    watched = monitor or shared_monitor()

    def observer(name: str) -> Any:
        def observe(_options: object) -> list[Any]:
            values = {entry.opentelemetry: entry.value for entry in measurements(watched)}
            return [Observation(values[name])] if name in values else []

        return observe

    def observe_collections(_options: object) -> list[Any]:
        return [
            Observation(row["collections"], {"cpython.gc.generation": number})
            for number, row in enumerate(watched.latest.gc_stats())
        ]

    created = []
    for entry in measurements(watched):
        if entry.opentelemetry:
            meter.create_observable_up_down_counter(
                entry.opentelemetry,
                callbacks=[observer(entry.opentelemetry)],
                unit=entry.unit,
                description=entry.help,
            )
            created.append(entry.opentelemetry)
    meter.create_observable_counter(
        "cpython.gc.collections",
        callbacks=[observe_collections],
        unit="{collection}",
        description="Garbage collections by generation.",
    )
    return [*created, "cpython.gc.collections"]
