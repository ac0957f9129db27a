"""The process's one memory monitor: a daemon thread that measures, and a snapshot for all to read.

There is one per interpreter, even if a module is imported twice or reloaded or the class is called
again: the instance is kept in a dict that belongs to the interpreter itself. While the monitor
runs, a request handler measures nothing; it reads what the thread published last.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from .. import _core
from . import process
from .alarms import ErrorLog
from .judge import Judge, LeakEvent
from .limits import DEFAULT_THRESHOLD_MB, default_threshold_mb, threshold_from_environment
from .settings import (
    DEFAULT_INTERVAL,
    DEFAULT_WINDOW,
    HISTORY_LENGTH,
    Settings,
    checked_settings,
)
from .site_sampling import SiteSampling, site_dict
from .snapshot import MemorySnapshot, Sampler, megabytes
from .tracking import TrackedObjects

if TYPE_CHECKING:
    import asyncio

    from .breakdown import Breakdown

_logger = logging.getLogger("ai_model_optimizations")
_Callback = TypeVar("_Callback", bound=Callable[..., Any])

#: While monitoring is off, a reading older than this is refreshed.
_STALE_SECONDS = 1.0
_SLOT = "memory_monitor"


class MemoryMonitor:
    """Watches this process's memory; the one instance is ``memory_monitor.memory_monitor``.

    Constructing it again returns that instance with a warning. Arguments take effect in the first
    construction that passes any; later ones are ignored, and the warning names them. Use
    :meth:`configure` or :func:`setup_memory_monitoring` to change settings on purpose.

    Parameters
    ----------
    check_interval : seconds between readings
    memory_threshold_mb : alarm above this; 4096 stands for min(4 GiB, 85% of the container's
        limit), unless ``MEMORY_THRESHOLD_MB`` is set
    leak_detection_window : number of readings over which growth is judged, at least 6
    """

    _settings: Settings

    def __new__(
        cls,
        check_interval: float = DEFAULT_INTERVAL,
        memory_threshold_mb: float = DEFAULT_THRESHOLD_MB,
        leak_detection_window: int = DEFAULT_WINDOW,
    ) -> MemoryMonitor:
        """Return the process's monitor."""
        given = checked_settings(
            check_interval=check_interval,
            memory_threshold_mb=memory_threshold_mb,
            leak_detection_window=leak_detection_window,
        )
        defaults = {
            "check_interval": DEFAULT_INTERVAL,
            "memory_threshold_mb": DEFAULT_THRESHOLD_MB,
            "leak_detection_window": DEFAULT_WINDOW,
        }
        changed = {name: value for name, value in given.items() if value != defaults[name]}
        monitor = shared_monitor()
        text = "this process already has its memory monitor, which is returned"
        if changed and monitor._configured:
            text += f"; ignored: {', '.join(sorted(changed))}"
        elif changed:
            monitor.configure(**changed)
        warnings.warn(text, RuntimeWarning, stacklevel=2)
        return monitor

    def _set_up(self) -> None:
        self._settings = Settings()
        self._configured = False
        self._errors = ErrorLog()
        self._sampler = Sampler(self._errors.note)
        self._judge = Judge(self._errors, self._settings)
        self._tracked = TrackedObjects()
        self._start_fresh()

    def _start_fresh(self) -> None:
        """Set the state of a process not watched yet: at creation, and in a forked child."""
        # Held to start and stop, and for a reading; never while a callback runs.
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._stop_event = threading.Event()
        self._revive = False
        self._history: tuple[MemorySnapshot, ...] = ()
        self._sites = SiteSampling(self._judge)
        self._gc_runs = 0
        self._judge.start_fresh(self._settings)

    # ---- one instance ----

    def __copy__(self) -> MemoryMonitor:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> MemoryMonitor:
        return self

    def __reduce__(self) -> tuple[Callable[[], MemoryMonitor], tuple[()]]:
        return shared_monitor, ()

    def __repr__(self) -> str:
        state = "monitoring" if self.monitoring else "stopped"
        return f"<MemoryMonitor {state}, threshold {self.memory_threshold_mb:.0f} MB>"

    # ---- settings ----

    @property
    def check_interval(self) -> float:
        """Seconds between readings."""
        return self._settings.check_interval

    @property
    def leak_detection_window(self) -> int:
        """Readings over which growth is judged."""
        return self._settings.leak_detection_window

    @property
    def memory_threshold_mb(self) -> float:
        """The alarm threshold: as set, else from the environment, else from the container."""
        return self._threshold_for(self.latest)

    def _threshold_for(self, snapshot: MemorySnapshot) -> float:
        if self._settings.memory_threshold_mb is not None:
            return self._settings.memory_threshold_mb
        try:
            threshold = threshold_from_environment()
        except ValueError as error:  # start_monitoring raises it; a reading must go on
            self._errors.note("reading MEMORY_THRESHOLD_MB", error)
            threshold = None
        return default_threshold_mb(snapshot.container) if threshold is None else threshold

    def configure(
        self,
        *,
        check_interval: float | None = None,
        memory_threshold_mb: float | None = None,
        leak_detection_window: int | None = None,
        warmup_readings: int | None = None,
        cooldown: float | None = None,
        gc_on_threshold: bool | None = None,
        trim_on_threshold: bool | None = None,
    ) -> None:
        """Change settings; None leaves one as it is. A running monitor follows at once.

        Parameters
        ----------
        check_interval, memory_threshold_mb, leak_detection_window : as in the class
        warmup_readings : readings after the start that do not count for leaks
        cooldown : seconds before the same alarm is repeated
        gc_on_threshold : run the garbage collector at an alarm
        trim_on_threshold : give the allocator's free pages back at an alarm
        """
        given = checked_settings(
            check_interval=check_interval,
            memory_threshold_mb=memory_threshold_mb,
            leak_detection_window=leak_detection_window,
            warmup_readings=warmup_readings,
            cooldown=cooldown,
            gc_on_threshold=gc_on_threshold,
            trim_on_threshold=trim_on_threshold,
        )
        if given.get("memory_threshold_mb") == DEFAULT_THRESHOLD_MB:
            given["memory_threshold_mb"] = None
        with self._lock:
            before = self._settings
            self._settings = replace(before, **given)
            self._configured = self._configured or bool(given)
            if given.keys() & {"leak_detection_window", "warmup_readings"}:
                self._judge.restart_trend(self._settings)
            restart = self._running() and self._settings.check_interval != before.check_interval
        if restart:
            self.stop_monitoring()
            self.start_monitoring()

    def count_connections_with(self, source: Callable[[], int] | None) -> None:
        """Count active connections by calling `source`, on the monitor's thread.

        Without a source, or while it fails, the process's connected internet sockets are counted
        instead, which includes those to databases.
        """
        if source is not None and not callable(source):
            raise TypeError(f"source must be callable, got {type(source).__name__}")
        self._sampler.connection_source = source

    # ---- start and stop ----

    @property
    def monitoring(self) -> bool:
        """Whether the monitor's thread runs (or will, at the next use, in a forked child)."""
        return self._revive or self._running()

    def _running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start_monitoring(
        self, *, allocations: bool = False, sample_bytes: int | None = None
    ) -> None:
        """Start the monitor's thread, unless it is running.

        Parameters
        ----------
        allocations : also start sampling allocation sites
        sample_bytes : mean number of allocated bytes per sample; None for the hook's default
        """
        threshold_from_environment()  # a wrong value is refused here, where the user can see it
        with self._lock:
            self._revive = False
            if allocations:
                self._sites.start(sample_bytes)
            if self._running():
                return
            self._judge.restart_trend(self._settings)
            self._stop_event = threading.Event()
            self._thread = threading.Thread(
                target=self._run,
                args=(self._stop_event,),
                name="aimo-memory-monitor",
                daemon=True,
            )
            self._thread.start()

    def stop_monitoring(self) -> None:
        """Stop the thread, and the sampling if the monitor started it; may be called again."""
        with self._lock:
            self._revive = False
            thread, self._thread = self._thread, None
            self._stop_event.set()
            self._sites.stop()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _after_fork_in_child(self) -> None:
        """The child has no thread: forget the parent's readings, and start again when used."""
        revive = self._revive or self._thread is not None
        self._start_fresh()
        self._revive = revive

    def _ensure_started(self) -> None:
        if self._revive:
            self.start_monitoring()

    def _run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self._tick()
            stop.wait(self._settings.check_interval)

    # ---- reading ----

    def _tick(self) -> None:
        """Take one reading and act on it; an error is noted and never ends the thread."""
        try:
            with self._lock:
                snapshot = self._read()
                self._sites.read()
            settings = self._settings
            alarm = self._judge.judge(snapshot, settings, self._threshold_for(snapshot))
            if alarm and settings.gc_on_threshold:
                self.force_gc()
            if alarm and settings.trim_on_threshold:
                self.trim()
        except BaseException as error:
            self._errors.note("a reading", error)

    def _read(self) -> MemorySnapshot:
        snapshot = self._sampler.take()
        self._history = (*self._history[-(HISTORY_LENGTH - 1) :], snapshot)
        return snapshot

    # ---- what handlers read ----

    @property
    def latest(self) -> MemorySnapshot:
        """The last snapshot; while the monitor is not running, one at most a second old."""
        self._ensure_started()
        history = self._history
        if history and (
            self._running() or time.monotonic() - history[-1].monotonic < _STALE_SECONDS
        ):
            return history[-1]
        with self._lock:
            return self._read()

    @property
    def snapshots(self) -> list[MemorySnapshot]:
        """The snapshots of up to a day, oldest first."""
        return list(self._history)

    @property
    def level(self) -> str:
        """``normal``, ``elevated``, ``high`` (the threshold is passed) or ``critical``."""
        return self._judge.level

    @property
    def errors(self) -> int:
        """How many errors were noted, none of which stopped the monitoring."""
        return self._errors.count

    @property
    def leak(self) -> LeakEvent | None:
        """The current steady growth, or None."""
        return self._judge.leak

    def get_stats(self) -> dict[str, Any]:
        """Return the current measurements as plain JSON."""
        snapshot = self.latest
        return {
            "current_memory_mb": snapshot.memory_mb,
            "current_cpu_percent": snapshot.cpu_percent,
            "active_connections": snapshot.active_connections,
            "memory_threshold_mb": round(self._threshold_for(snapshot), 2),
            "monitoring_active": self.monitoring,
            "total_snapshots": len(self._history),
            "memory_warnings": self._judge.memory_warnings,
            "leak_alerts": self._judge.leak_alerts,
            "total_gc_runs": self._gc_runs,
            "gc_stats": snapshot.gc_stats(),
            "top_allocations": [site_dict(site) for site in self._judge.top_sites],
        }

    def get_memory_history(self, minutes: float = 60) -> list[dict[str, Any]]:
        """Return the readings of the last `minutes`, oldest first, as plain JSON."""
        if isinstance(minutes, bool) or not isinstance(minutes, (int, float)):
            raise TypeError(f"minutes must be a number, got {type(minutes).__name__}")
        if not minutes > 0:
            raise ValueError(f"minutes must be positive, got {minutes!r}")
        oldest = self.latest.monotonic - 60.0 * minutes
        return [entry.history_entry() for entry in self._history if entry.monotonic >= oldest]

    def get_memory_status(self) -> dict[str, Any]:
        """Return everything that a health page shows, as plain JSON."""
        snapshot, leak = self.latest, self._judge.leak
        return {
            "status": self.level,
            **self.get_stats(),
            "memory": snapshot.memory_dict(),
            "container": snapshot.container_dict(),
            "leak": None if leak is None else leak.to_dict(),
            "tracked_objects": self.tracked_objects(),
            "errors": self._errors.count,
        }

    def breakdown(self, *, objects: bool = True, pss: bool = False) -> Breakdown:
        """Split the memory by owner; walks the heap when `objects` is true (see `breakdown`)."""
        from .breakdown import take

        return take(objects=objects, pss=pss)

    # ---- alarms ----

    def on_threshold(
        self, callback: _Callback, *, loop: asyncio.AbstractEventLoop | None = None
    ) -> _Callback:
        """Call `callback(event)` when memory passes the threshold, to drain a worker for instance.

        A callback that is registered inside a running event loop (or with `loop`) runs on that
        loop and may be a coroutine function; any other runs on the monitor's thread. Usable as a
        decorator.
        """
        self._judge.threshold_callbacks.add(callback, loop)
        return callback

    def on_leak(
        self, callback: _Callback, *, loop: asyncio.AbstractEventLoop | None = None
    ) -> _Callback:
        """Call `callback(event)` when steady growth is found; as :meth:`on_threshold` otherwise."""
        self._judge.leak_callbacks.add(callback, loop)
        return callback

    def remove_callback(self, callback: Callable[..., Any]) -> bool:
        """Remove a callback of either kind; False if it was not registered."""
        removed = self._judge.threshold_callbacks.remove(callback)
        return self._judge.leak_callbacks.remove(callback) or removed

    # ---- on request ----

    def force_gc(self) -> dict[str, Any]:
        """Run the garbage collector and return what it did."""
        before, start = process.memory(), time.perf_counter()
        collected = gc.collect()
        seconds = time.perf_counter() - start
        self._gc_runs += 1
        after = process.memory()
        return {
            "collected": collected,
            "memory_before_mb": megabytes(before.rss),
            "memory_after_mb": megabytes(after.rss),
            "freed_mb": megabytes(before.rss - after.rss),
            "seconds": round(seconds, 4),
        }

    def trim(self) -> bool:
        """Return the C allocator's free pages to the system; takes tens of milliseconds."""
        return process.give_back_free_pages()

    def track_object(self, obj: object, name: str | None = None) -> None:
        """Count `obj` in :meth:`tracked_objects` until it dies; it is not kept alive.

        Parameters
        ----------
        obj : anything that supports weak references
        name : what to count it as; its type's name by default
        """
        self._tracked.add(obj, name)

    def untrack_object(self, obj: object) -> bool:
        """Stop counting `obj`; False if it was not tracked."""
        return self._tracked.remove(obj)

    def tracked_objects(self) -> dict[str, int]:
        """Return how many tracked objects are alive, by name."""
        return self._tracked.counts()


def shared_monitor() -> MemoryMonitor:
    """Return the process's monitor; the first call makes it.

    After a reload of this module the instance gets the new class, so that code that holds the
    instance runs the new methods.
    """
    slot: dict[str, Any] = _core.interpreter_state()
    monitor: Any = slot.get(_SLOT)
    if monitor is None:
        fresh = object.__new__(MemoryMonitor)
        fresh._set_up()
        monitor = slot.setdefault(_SLOT, fresh)
        os.register_at_fork(after_in_child=lambda: slot[_SLOT]._after_fork_in_child())
        atexit.register(lambda: slot[_SLOT].stop_monitoring())
    if type(monitor) is not MemoryMonitor:
        monitor.__class__ = MemoryMonitor
    assert isinstance(monitor, MemoryMonitor)
    return monitor
