"""When memory use becomes an alarm, and how the alarm reaches the service.

Levels have hysteresis (one is left only well below where it was entered) and a cool-down (the same
one is not repeated at every reading), so a process that hovers at its threshold alarms once.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .limits import CONTAINER_SHARE, MIB
from .snapshot import MemorySnapshot

if TYPE_CHECKING:
    import asyncio

_logger = logging.getLogger("ai_model_optimizations")

LEVELS = ("normal", "elevated", "high", "critical")
#: Use divided by threshold at which each level begins. "high" is the threshold itself.
_ENTER = (0.0, 0.9, 1.0, 1.1)
_EXIT_SHARE = 0.95
ALARM_LEVEL = LEVELS.index("high")

_Event = TypeVar("_Event")


@dataclass(frozen=True, slots=True)
class ThresholdEvent:
    """Memory use has passed the threshold, or is still above it after the cool-down."""

    level: str
    memory_mb: float
    threshold_mb: float
    snapshot: MemorySnapshot


def pressure(snapshot: MemorySnapshot, threshold_mb: float) -> float:
    """Return use divided by threshold; the container's, by its limit, where that is larger.

    File-mapped pages do not count: the system drops them when it needs room.
    """
    own = snapshot.process.counted / (threshold_mb * MIB)
    if snapshot.container is None:
        return own
    allowed = CONTAINER_SHARE * snapshot.container.limit
    return max(own, snapshot.container.working_set / allowed)


class LevelTracker:
    """Turns pressure into a level and says when to alarm."""

    def __init__(self) -> None:
        self._level = 0
        self._alarmed_at: float | None = None
        self._alarmed_level = 0

    @property
    def level(self) -> str:
        """The level after the last update."""
        return LEVELS[self._level]

    def update(self, ratio: float, now: float, cooldown: float) -> bool:
        """Take in one reading; True when it is an alarm."""
        entered = max(i for i, bound in enumerate(_ENTER) if ratio >= bound)
        if entered < self._level and ratio >= _ENTER[self._level] * _EXIT_SHARE:
            entered = self._level
        self._level = entered
        if entered < ALARM_LEVEL:
            return False
        quiet = self._alarmed_at is not None and now - self._alarmed_at < cooldown
        if quiet and entered <= self._alarmed_level:
            return False
        self._alarmed_at, self._alarmed_level = now, entered
        return True


class ErrorLog:
    """Logs each kind of error once, with its traceback, and counts them all."""

    def __init__(self) -> None:
        self.count = 0
        self._seen: set[tuple[str, str]] = set()

    def note(self, where: str, error: BaseException) -> None:
        """Take in one error."""
        self.count += 1
        kind = (where, type(error).__qualname__)
        if kind in self._seen:
            return
        self._seen.add(kind)
        _logger.error(
            "memory monitor: %s failed; this is logged once, and monitoring goes on",
            where,
            exc_info=error,
        )


class Callbacks(Generic[_Event]):
    """Callbacks for one kind of event, each called on the event loop it belongs to.

    One that was registered inside a running event loop is called on that loop; any other is called
    on the monitor's thread. A coroutine function needs a loop.
    """

    def __init__(self, where: str, errors: ErrorLog) -> None:
        self._where = where
        self._errors = errors
        self._entries: tuple[
            tuple[Callable[[_Event], Any], asyncio.AbstractEventLoop | None], ...
        ] = ()
        self._lock = threading.Lock()
        self._tasks: set[asyncio.Future[Any]] = set()

    def after_fork(self) -> None:
        """Make the lock usable in a child process whose parent may have held it."""
        self._lock = threading.Lock()

    def add(
        self, callback: Callable[[_Event], Any], loop: asyncio.AbstractEventLoop | None
    ) -> None:
        """Register `callback`; `loop` defaults to the running one."""
        if not callable(callback):
            raise TypeError(f"callback must be callable, got {type(callback).__name__}")
        import asyncio  # here, so that importing the package stays quick

        if loop is None:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                if inspect.iscoroutinefunction(callback):
                    raise TypeError(
                        "callback is a coroutine function: register it inside a running event "
                        "loop or pass loop="
                    ) from None
        with self._lock:
            self._entries = (*self._entries, (callback, loop))

    def remove(self, callback: Callable[[_Event], Any]) -> bool:
        """Forget `callback`; False when it was not registered."""
        with self._lock:
            kept = tuple(entry for entry in self._entries if entry[0] != callback)
            removed = len(kept) < len(self._entries)
            self._entries = kept
        return removed

    def deliver(self, event: _Event) -> None:
        """Hand `event` to every callback; never raises."""
        for callback, loop in self._entries:
            if loop is None:
                self._call(callback, event)
            elif not loop.is_closed():
                try:
                    loop.call_soon_threadsafe(self._call, callback, event)
                except RuntimeError as error:  # closed between the two lines
                    self._errors.note(self._where, error)

    def _call(self, callback: Callable[[_Event], Any], event: _Event) -> None:
        try:
            result = callback(event)
            if inspect.iscoroutine(result):
                import asyncio

                task = asyncio.ensure_future(result)
                self._tasks.add(task)
                task.add_done_callback(self._finish)
        except BaseException as error:  # a callback's SystemExit must not end the monitor
            self._errors.note(self._where, error)

    def _finish(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._errors.note(self._where, error)
