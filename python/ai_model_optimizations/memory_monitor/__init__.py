"""Watch a service's memory without touching its objects.

``memory_monitor`` is the process's one monitor::

    from ai_model_optimizations.memory_monitor import memory_monitor, setup_memory_monitoring

    setup_memory_monitoring(check_interval=30)
    memory_monitor.get_stats()

Importing this starts no thread and imports neither torch nor psutil.
"""

from .alarms import ThresholdEvent
from .breakdown import Breakdown
from .judge import LeakEvent
from .leaks import MemoryLeakDetector
from .metrics import MemoryCollector, register_opentelemetry, register_prometheus
from .monitor import MemoryMonitor, shared_monitor
from .monitor_functions import (
    force_gc,
    get_memory_history,
    get_memory_status,
    setup_memory_monitoring,
    start_monitoring,
    stop_monitoring,
)
from .process import Worker, workers
from .snapshot import MemorySnapshot
from .tracking import MemoryTracker, track_memory

__all__ = [
    "Breakdown",
    "LeakEvent",
    "MemoryCollector",
    "MemoryLeakDetector",
    "MemoryMonitor",
    "MemorySnapshot",
    "MemoryTracker",
    "ThresholdEvent",
    "Worker",
    "force_gc",
    "get_memory_history",
    "get_memory_status",
    "memory_monitor",
    "register_opentelemetry",
    "register_prometheus",
    "setup_memory_monitoring",
    "start_monitoring",
    "stop_monitoring",
    "track_memory",
    "workers",
]

memory_monitor: MemoryMonitor = shared_monitor()
