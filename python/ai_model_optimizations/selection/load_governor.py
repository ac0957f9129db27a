"""Steps a family of precision variants down when its models are too slow, and up again later.

With hysteresis, so that it does not swing: down after a run of late answers, up only after a run
three times as long of quick ones, and never twice within the dwell time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

_LATE: Final = 1.2  # of the budget
_QUICK: Final = 0.7
_RUN: Final = 20  # late answers before a step down; quick ones before a step up are three times it
_WEIGHT: Final = 0.1  # of one answer in the running average


class LoadGovernor:
    """Watches one family's answers. The owner holds its lock around every method.

    Parameters
    ----------
    dwell_seconds : least time between two steps
    clock : seconds that never go back
    """

    __slots__ = ("_average", "_clock", "_dwell", "_late", "_quick", "_since", "step")

    def __init__(
        self, dwell_seconds: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.step = 0  # how many variants below the preferred one
        self._dwell = dwell_seconds
        self._clock = clock
        self._since = clock() - dwell_seconds
        self._average: float | None = None  # latency as a share of the budget
        self._late = 0
        self._quick = 0

    def observe(self, share_of_budget: float, lowest_step: int) -> None:
        """Take note of one answer; `lowest_step` is the last step that a variant exists for."""
        if self._average is None:
            self._average = share_of_budget
        self._average += _WEIGHT * (share_of_budget - self._average)
        self._late = self._late + 1 if self._average > _LATE else 0
        self._quick = self._quick + 1 if self._average < _QUICK else 0
        if self._clock() - self._since < self._dwell:
            return
        if self._late >= _RUN and self.step < lowest_step:
            self._move(1)
        elif self._quick >= 3 * _RUN and self.step > 0:
            self._move(-1)

    def _move(self, change: int) -> None:
        self.step += change
        self._since = self._clock()
        self._average = None  # another variant, another latency
        self._late = self._quick = 0
