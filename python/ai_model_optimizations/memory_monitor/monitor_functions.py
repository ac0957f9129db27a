"""Functions that use the process's monitor, for services that never hold the object."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .monitor import MemoryMonitor, shared_monitor


def setup_memory_monitoring(
    check_interval: float | None = None,
    memory_threshold_mb: float | None = None,
    leak_detection_window: int | None = None,
    *,
    allocations: bool = False,
    connections: Callable[[], int] | None = None,
    warmup_readings: int | None = None,
    cooldown: float | None = None,
    gc_on_threshold: bool | None = None,
    trim_on_threshold: bool | None = None,
) -> MemoryMonitor:
    """Configure the process's monitor, start it and return it; may be called repeatedly.

    Parameters
    ----------
    check_interval, memory_threshold_mb, leak_detection_window : as in :class:`MemoryMonitor`
    allocations : also sample allocation sites
    connections : returns how many connections are active
    warmup_readings, cooldown, gc_on_threshold, trim_on_threshold : as in
        :meth:`MemoryMonitor.configure`
    """
    monitor = shared_monitor()
    monitor.configure(
        check_interval=check_interval,
        memory_threshold_mb=memory_threshold_mb,
        leak_detection_window=leak_detection_window,
        warmup_readings=warmup_readings,
        cooldown=cooldown,
        gc_on_threshold=gc_on_threshold,
        trim_on_threshold=trim_on_threshold,
    )
    if connections is not None:
        monitor.count_connections_with(connections)
    monitor.start_monitoring(allocations=allocations)
    return monitor


def start_monitoring(*, allocations: bool = False) -> None:
    """Start the process's monitor."""
    shared_monitor().start_monitoring(allocations=allocations)


def stop_monitoring() -> None:
    """Stop the process's monitor."""
    shared_monitor().stop_monitoring()


def get_memory_status() -> dict[str, Any]:
    """Return everything that a health page shows, as plain JSON."""
    return shared_monitor().get_memory_status()


def get_memory_history(minutes: float = 60) -> list[dict[str, Any]]:
    """Return the readings of the last `minutes`, oldest first, as plain JSON."""
    return shared_monitor().get_memory_history(minutes)


def force_gc() -> dict[str, Any]:
    """Run the garbage collector and return what it did."""
    return shared_monitor().force_gc()
