"""Texts that are longer than a model reads: how many were cut, and what is done about it."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

logger = logging.getLogger("ai_model_optimizations")

OnTruncate = Literal["warn", "error", "ignore"]
POLICIES: tuple[OnTruncate, ...] = ("warn", "error", "ignore")

#: Seconds between two warnings of one model.
WARNING_INTERVAL = 60.0


class Cut(NamedTuple):
    """One text that was cut."""

    #: Which of the texts.
    text: int
    #: Tokens that the model does not see.
    dropped: int
    #: False when the text was cut before it was tokenized: more may have been dropped.
    exact: bool


@dataclass(frozen=True)
class TruncationReport:
    """How many texts a model has cut so far; ``str`` returns it as a sentence."""

    #: Texts encoded.
    texts: int
    #: How many of them were cut.
    cut: int
    #: Tokens that the model did not see; a lower bound unless ``exact``.
    dropped_tokens: int
    exact: bool
    #: Tokens that the model reads, special ones included.
    limit: int

    def __str__(self) -> str:
        least = "" if self.exact else "at least "
        return (
            f"{self.cut} of {self.texts} texts were cut to {self.limit} tokens, "
            f"{least}{self.dropped_tokens} tokens were dropped"
        )


def check_policy(policy: str) -> OnTruncate:
    """Return ``policy``; ValueError if it is unknown."""
    for known in POLICIES:
        if policy == known:
            return known
    raise ValueError(f"on_truncate: expected one of {POLICIES}, got {policy!r}")


class TruncationLog:
    """Counts and reports cut texts; safe to use from several threads.

    Parameters
    ----------
    limit : tokens that the model reads
    clock : seconds, for the rate of warnings
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._lock = threading.Lock()
        self._texts = self._cut = self._dropped = 0
        self._exact = True
        self._warned_at: float | None = None
        _logs.add(self)

    @property
    def report(self) -> TruncationReport:
        """The counts so far."""
        with self._lock:
            return TruncationReport(self._texts, self._cut, self._dropped, self._exact, self._limit)

    def record(self, texts: int, cuts: Sequence[Cut], policy: OnTruncate) -> None:
        """Count a batch of ``texts`` texts, and warn or raise as the policy says.

        Raises
        ------
        ValueError
            If a text was cut and the policy is ``"error"``; then nothing is counted.
        """
        if cuts and policy == "error":
            first = cuts[0]
            least = "" if first.exact else "at least "
            raise ValueError(
                f"texts[{first.text}]: {least}{self._limit + first.dropped} tokens, the model "
                f"reads {self._limit} (on_truncate='error')"
            )
        with self._lock:
            self._texts += texts
            if not cuts:
                return
            self._cut += len(cuts)
            self._dropped += sum(cut.dropped for cut in cuts)
            self._exact = self._exact and all(cut.exact for cut in cuts)
            warn = policy == "warn" and self._may_warn()
        if warn:
            logger.warning("%s; on_truncate='ignore' silences this", self.report)

    def _may_warn(self) -> bool:
        now = self._clock()
        if self._warned_at is not None and now - self._warned_at < WARNING_INTERVAL:
            return False
        self._warned_at = now
        return True


_logs: weakref.WeakSet[TruncationLog] = weakref.WeakSet()


def _renew_locks() -> None:
    """In a forked child: other threads of the parent may have held them."""
    for log in list(_logs):
        log._lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_locks)
