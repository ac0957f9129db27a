"""Metrics in a Prometheus registry, where each metric family may stand only once.

Several caches or processors of a registry therefore share one collector, which puts their samples
together.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from weakref import WeakKeyDictionary, ref

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import CollectorRegistry

Owner = TypeVar("Owner")
_Labels: TypeAlias = tuple[tuple[str, str], ...]
_Source: TypeAlias = tuple[ref[Any], Callable[[Any], Iterable["Metric"]]]


def prometheus_module() -> Any:
    """Return ``prometheus_client.core``; ImportError names the extra that has it."""
    try:
        import prometheus_client.core
    except ImportError:
        raise ImportError(
            "Prometheus metrics need prometheus-client: "
            "pip install 'ai-model-optimizations[prometheus]'"
        ) from None
    return prometheus_client.core


class SharedCollector:
    """The families of all objects of one kind in a registry, each family once.

    It keeps none of them alive: whose object is gone is not collected any more.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sources: dict[_Labels, _Source] = {}  # protected by _lock

    def add(self, labels: _Labels, source: _Source) -> None:
        """Collect one more; it takes the place of one with the same labels."""
        with self._lock:
            self._sources[labels] = source

    def collect(self) -> Iterable[Metric]:
        """Return the families with the samples of all; called by the registry at each scrape."""
        with self._lock:
            sources = list(self._sources.items())
        merged: dict[str, Metric] = {}
        for labels, source in sources:
            owner, families = source[0](), source[1]
            if owner is None:
                self._forget(labels, source)
                continue
            for family in families(owner):
                first = merged.setdefault(family.name, family)
                if first is not family:
                    first.samples.extend(family.samples)
        return merged.values()

    #: A registry asks for names, and refuses another collector of the same.
    describe = collect

    def _forget(self, labels: _Labels, source: _Source) -> None:
        with self._lock:
            if self._sources.get(labels) is source:
                del self._sources[labels]


_lock = threading.Lock()
#: By kind. Protected by _lock.
_collectors: WeakKeyDictionary[CollectorRegistry, dict[str, SharedCollector]] = (
    WeakKeyDictionary()
)


def register(
    registry: CollectorRegistry | None,
    kind: str,
    labels: Mapping[str, str],
    owner: Owner,
    families: Callable[[Owner], Iterable[Metric]],
) -> None:
    """Add an object to its kind's collector in a registry; None is the client's default one."""
    registry = prometheus_module().REGISTRY if registry is None else registry
    with _lock:
        collector = _collectors.setdefault(registry, {}).setdefault(kind, SharedCollector())
        collector.add(tuple(sorted(labels.items())), (ref(owner), families))
        with suppress(KeyError):  # it is new, or was taken out
            registry.unregister(collector)
        registry.register(collector)
