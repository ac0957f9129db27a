"""Is memory growing for good? A robust slope over readings, and sites that grow in all of them.

Comparing the mean of the last readings with that of the first would raise an alarm at every model
load. The slope here is the median over all pairs of readings (Theil-Sen), and what counts is the
lower end of its confidence interval: one step, however high, leaves it at zero; steady growth does
not.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .allocations import UNKNOWN, Site, Traceback

#: Normal quantile of the interval: one in 200 flat, noisy windows is above it.
_QUANTILE = 2.58
LEAST_READINGS = 6


@dataclass(frozen=True, slots=True)
class Slope:
    """Bytes per second: the estimate and its confidence interval, over `seconds`."""

    estimate: float
    low: float
    high: float
    seconds: float


@functools.cache
def _pairs(n: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    return np.triu_indices(n, 1)


def robust_slope(times: Sequence[float], values: Sequence[float]) -> Slope | None:
    """Return the Theil-Sen slope of `values` over rising `times`; None with too few readings."""
    n = len(times)
    if n < LEAST_READINGS:
        return None
    first, second = _pairs(n)
    t, v = np.asarray(times, np.float64), np.asarray(values, np.float64)
    distance = t[second] - t[first]
    usable = distance > 0
    slopes = np.sort((v[second] - v[first])[usable] / distance[usable])
    if slopes.size < LEAST_READINGS:
        return None
    # Sen's confidence interval, which is based on Kendall's tau.
    spread = _QUANTILE * math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    low = max(0, math.floor((slopes.size - spread) / 2))
    high = min(slopes.size - 1, math.ceil((slopes.size + spread) / 2))
    return Slope(float(np.median(slopes)), float(slopes[low]), float(slopes[high]), t[-1] - t[0])


class GrowthTrend:
    """The slope over the last `window` readings that came after the warm-up."""

    def __init__(self, window: int, warmup: int) -> None:
        self._warmup = warmup
        self._readings: deque[tuple[float, int]] = deque(maxlen=window)

    def add(self, moment: float, count: int) -> None:
        """Take in one reading: seconds and bytes."""
        if self._warmup > 0:
            self._warmup -= 1
        else:
            self._readings.append((moment, count))

    def slope(self) -> Slope | None:
        """Return the slope when the window is full, else None."""
        if len(self._readings) < (self._readings.maxlen or 0):
            return None
        return robust_slope(
            [moment for moment, _ in self._readings], [count for _, count in self._readings]
        )


@dataclass(frozen=True, slots=True)
class GrowingSite:
    """A call site whose live bytes rose in every one of the last snapshots."""

    traceback: Traceback
    live_bytes: int
    grown_bytes: int

    def __str__(self) -> str:
        return str(self.traceback[-1]) if self.traceback else UNKNOWN


class GrowingSites:
    """Finds sites that rose `steps` times in a row, by more than the sampling explains."""

    def __init__(self, steps: int) -> None:
        self._history: deque[dict[Traceback, tuple[float, float]]] = deque(maxlen=steps + 1)

    def add(self, sites: Sequence[Site]) -> None:
        """Take in the sites of one snapshot."""
        self._history.append(
            {site.traceback: (site.live_bytes, site.standard_error) for site in sites}
        )

    def clear(self) -> None:
        """Forget what was seen, after the hook was restarted."""
        self._history.clear()

    def growing(self) -> list[GrowingSite]:
        """List the growing sites, the fastest first; empty until enough snapshots were taken."""
        if len(self._history) < (self._history.maxlen or 0):
            return []
        found = []
        for traceback, (last, error) in self._history[-1].items():
            series = [step.get(traceback, (0.0, 0.0)) for step in self._history]
            rises = all(b[0] > a[0] for a, b in itertools.pairwise(series))
            grown = last - series[0][0]
            if rises and grown > 2 * math.hypot(error, series[0][1]):
                found.append(GrowingSite(traceback, int(last), int(grown)))
        return sorted(found, key=lambda site: -site.grown_bytes)
