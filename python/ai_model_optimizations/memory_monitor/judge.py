"""What follows from a reading: an alarm about the threshold, or about steady growth.

The judge keeps the state that a verdict needs (the level, the trend, the growing call sites) and
delivers events to the registered callbacks. It measures nothing itself.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .alarms import Callbacks, ErrorLog, LevelTracker, ThresholdEvent, pressure
from .allocations import Site
from .limits import MIB
from .settings import Settings
from .snapshot import MemorySnapshot, megabytes
from .trend import GrowingSite, GrowingSites, GrowthTrend

_logger = logging.getLogger("ai_model_optimizations")

#: Growth below these is never called a leak: 1 MB per minute, and 2 MB over the window.
_LEAST_LEAK_PER_SECOND = MIB / 60
_LEAST_LEAK = 2 * MIB
_SITE_STEPS = 3
_TOP_SITES = 10


@dataclass(frozen=True, slots=True)
class LeakEvent:
    """Memory has grown steadily over a whole window, by more than noise explains."""

    slope_mb_per_minute: float
    least_mb_per_minute: float
    memory_mb: float
    window: int
    sites: tuple[GrowingSite, ...]

    def to_dict(self) -> dict[str, Any]:
        """The growth as plain JSON."""
        return {
            "slope_mb_per_minute": self.slope_mb_per_minute,
            "least_mb_per_minute": self.least_mb_per_minute,
            "window": self.window,
            "sites": [
                {"site": str(site), "grown_mb": megabytes(site.grown_bytes)} for site in self.sites
            ],
        }


class Judge:
    """Turns readings into events. Used by one thread at a time, callbacks aside."""

    def __init__(self, errors: ErrorLog, settings: Settings) -> None:
        self.threshold_callbacks: Callbacks[ThresholdEvent] = Callbacks(
            "an on_threshold callback", errors
        )
        self.leak_callbacks: Callbacks[LeakEvent] = Callbacks("an on_leak callback", errors)
        self.start_fresh(settings)

    def start_fresh(self, settings: Settings) -> None:
        """Forget all readings and alarms; callbacks stay, in a forked child the parent's too."""
        self.threshold_callbacks.after_fork()
        self.leak_callbacks.after_fork()
        self._levels = LevelTracker()
        self.leak: LeakEvent | None = None
        self.top_sites: tuple[Site, ...] = ()
        self.memory_warnings = self.leak_alerts = 0
        self._leak_alarmed_at = -math.inf
        self.restart_trend(settings)

    def restart_trend(self, settings: Settings) -> None:
        """Judge growth from here on, after a new warm-up."""
        self._trend = GrowthTrend(settings.leak_detection_window, settings.warmup_readings)
        self._growing_sites = GrowingSites(_SITE_STEPS)

    def forget_sites(self) -> None:
        """Forget call sites once sampling has stopped or restarted: no new ones compare."""
        self.top_sites = ()
        self._growing_sites.clear()

    @property
    def level(self) -> str:
        """``normal``, ``elevated``, ``high`` (the threshold is passed) or ``critical``."""
        return self._levels.level

    def add_sites(self, sites: Sequence[Site]) -> None:
        """Take in the call sites of one snapshot, largest first."""
        self.top_sites = tuple(sites[:_TOP_SITES])
        self._growing_sites.add(sites)

    def judge(self, snapshot: MemorySnapshot, settings: Settings, threshold_mb: float) -> bool:
        """Take in one reading and deliver its events; True if the threshold alarm went off."""
        ratio = pressure(snapshot, threshold_mb)
        alarm = self._levels.update(ratio, snapshot.monotonic, settings.cooldown)
        if alarm:
            self._raise_threshold_alarm(snapshot, threshold_mb)
        self._trend.add(snapshot.monotonic, snapshot.process.counted)
        self.leak = self._find_leak(snapshot, settings)
        if self.leak and snapshot.monotonic - self._leak_alarmed_at >= settings.cooldown:
            self._leak_alarmed_at = snapshot.monotonic
            self._raise_leak_alarm(self.leak)
        return alarm

    def _raise_threshold_alarm(self, snapshot: MemorySnapshot, threshold_mb: float) -> None:
        self.memory_warnings += 1
        counted = megabytes(snapshot.process.counted)
        _logger.warning(
            "memory is %s: %.0f MB of a threshold of %.0f MB (resident %.0f MB)",
            self.level,
            counted,
            threshold_mb,
            snapshot.memory_mb,
        )
        event = ThresholdEvent(self.level, counted, round(threshold_mb, 2), snapshot)
        self.threshold_callbacks.deliver(event)

    def _find_leak(self, snapshot: MemorySnapshot, settings: Settings) -> LeakEvent | None:
        slope = self._trend.slope()
        if slope is None or slope.low < _LEAST_LEAK_PER_SECOND:
            return None
        if slope.low * slope.seconds < _LEAST_LEAK:
            return None
        return LeakEvent(
            slope_mb_per_minute=megabytes(slope.estimate * 60),
            least_mb_per_minute=megabytes(slope.low * 60),
            memory_mb=megabytes(snapshot.process.counted),
            window=settings.leak_detection_window,
            sites=tuple(self._growing_sites.growing()[:_TOP_SITES]),
        )

    def _raise_leak_alarm(self, leak: LeakEvent) -> None:
        self.leak_alerts += 1
        _logger.warning(
            "memory grows by %.1f MB per minute (at least %.1f) over %d readings; growing: %s",
            leak.slope_mb_per_minute,
            leak.least_mb_per_minute,
            leak.window,
            "; ".join(map(str, leak.sites)) or "no sampled site",
        )
        self.leak_callbacks.deliver(leak)
