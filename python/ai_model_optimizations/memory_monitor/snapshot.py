"""A reading of the process, and how it is taken.

A snapshot is immutable: the monitor's thread publishes it, handlers read it. Nothing here looks at
Python objects, so a reading costs the same in a process with a thousand objects and with a million.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from . import limits, process
from .limits import MIB, ContainerMemory
from .process import ProcessMemory

#: Reading the allocator walks its free lists. One that took longer is repeated less often.
_QUICK_SECONDS = 0.0002
_MOST_SKIPPED = 100
#: For how many readings the list of control groups above this process is kept.
_GROUPS_KEPT = 60


def megabytes(count: int | float) -> float:
    """Bytes as megabytes with two decimals, for people and for JSON."""
    return round(count / MIB, 2)


@dataclass(frozen=True, slots=True)
class GcGeneration:
    """What the garbage collector did in one generation since the process began."""

    collections: int
    collected: int
    uncollectable: int


@dataclass(frozen=True, slots=True)
class MemorySnapshot:
    """What the monitor saw at one moment; sizes in bytes unless the name says megabytes."""

    timestamp: float
    monotonic: float
    process: ProcessMemory
    cpu_percent: float
    active_connections: int
    open_files: int
    container: ContainerMemory | None
    allocator: dict[str, Any]
    gc_generations: tuple[GcGeneration, ...]

    @property
    def memory_mb(self) -> float:
        """The resident set."""
        return megabytes(self.process.rss)

    def history_entry(self) -> dict[str, Any]:
        """Return the entry for ``get_memory_history``."""
        moment = datetime.fromtimestamp(self.timestamp, timezone.utc)
        return {
            "timestamp": moment.isoformat(timespec="milliseconds"),
            "memory_mb": self.memory_mb,
            "cpu_percent": self.cpu_percent,
            "active_connections": self.active_connections,
        }

    def gc_stats(self) -> list[dict[str, int]]:
        """Return the collector's statistics, as ``gc.get_stats`` does."""
        return [
            {
                "collections": generation.collections,
                "collected": generation.collected,
                "uncollectable": generation.uncollectable,
            }
            for generation in self.gc_generations
        ]

    def memory_dict(self) -> dict[str, Any]:
        """Return what the resident set consists of, in megabytes."""
        return {
            "rss_mb": megabytes(self.process.rss),
            "anonymous_mb": megabytes(self.process.anonymous),
            "file_mapped_mb": megabytes(self.process.file_mapped),
            "shared_mb": megabytes(self.process.shared),
            "swapped_mb": megabytes(self.process.swapped),
            "peak_mb": megabytes(self.process.peak),
            "virtual_mb": megabytes(self.process.virtual),
            "threads": self.process.threads,
            "open_files": self.open_files,
            "allocator": self.allocator["name"],
            "allocator_live_mb": self._allocator_mb("live"),
            "allocator_retained_mb": self._allocator_mb("retained"),
        }

    def container_dict(self) -> dict[str, Any] | None:
        """The container's limit and use in megabytes, or None without a limit."""
        if self.container is None:
            return None
        return {
            "limit_mb": megabytes(self.container.limit),
            "usage_mb": megabytes(self.container.usage),
            "working_set_mb": megabytes(self.container.working_set),
            "available_mb": megabytes(self.container.available),
        }

    def _allocator_mb(self, field: str) -> float | None:
        return megabytes(self.allocator[field]) if self.allocator["known"] else None


class Sampler:
    """Takes snapshots and remembers the last one for rates. Used by one thread at a time.

    Parameters
    ----------
    note : called with the place and the error when the service's own code raises
    """

    def __init__(self, note: Callable[[str, BaseException], None]) -> None:
        self._note = note
        self.connection_source: Callable[[], int] | None = None
        self._last_wall = time.monotonic()
        self._last_cpu = time.process_time()
        self._allocator: dict[str, Any] = {}
        self._allocator_skips = 0
        self._groups: tuple[limits.Group, ...] = ()
        self._groups_age = _GROUPS_KEPT

    def take(self) -> MemorySnapshot:
        """Read everything that is cheap: well under a millisecond."""
        files = process.open_files()
        return MemorySnapshot(
            timestamp=time.time(),
            monotonic=time.monotonic(),
            process=process.memory(),
            cpu_percent=self._cpu_percent(),
            active_connections=self._connections(files[1] if files else 0),
            open_files=files[0] if files else 0,
            container=self._container(),
            allocator=self._allocator_figures(),
            gc_generations=tuple(
                GcGeneration(row["collections"], row["collected"], row["uncollectable"])
                for row in gc.get_stats()
            ),
        )

    def _cpu_percent(self) -> float:
        """CPU time over wall time since the last reading; two busy threads give 200."""
        wall, cpu = time.monotonic(), time.process_time()
        elapsed, used = wall - self._last_wall, cpu - self._last_cpu
        self._last_wall, self._last_cpu = wall, cpu
        return round(100.0 * used / elapsed, 1) if elapsed > 0 else 0.0

    def _connections(self, sockets: int) -> int:
        if self.connection_source is None:
            return sockets
        try:
            return int(self.connection_source())
        except (Exception, SystemExit) as error:  # it must not hide where the memory is
            self._note("counting connections", error)
            return sockets

    def _container(self) -> ContainerMemory | None:
        if self._groups_age >= _GROUPS_KEPT:
            self._groups = limits.limiting_groups()
            self._groups_age = 0
        self._groups_age += 1
        return limits.tightest(self._groups)

    def _allocator_figures(self) -> dict[str, Any]:
        if self._allocator_skips > 0:
            self._allocator_skips -= 1
            return self._allocator
        start = time.perf_counter()
        self._allocator = process.allocator()
        slowness = (time.perf_counter() - start) / _QUICK_SECONDS
        self._allocator_skips = min(_MOST_SKIPPED, int(slowness))
        return self._allocator
