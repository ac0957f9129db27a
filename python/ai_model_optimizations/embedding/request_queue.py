"""The texts waiting to be embedded: their callers, and the order in which they are taken.

Plain data without threads or locks; the dispatcher holds its lock around every method. A *call* is
one caller with its texts; an *item* is one distinct text, shared by every call that wants it while
it is in flight.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import enum
import math
import time
from collections import deque
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import QueueFull
from .outcome import LoopOutcome

Priority = Literal["high", "normal", "low"]
Answer = NDArray[np.float32]

# Shares of the token throughput when all three have work waiting. Every share is above zero, so
# nothing starves; a priority that needs less than its share is served at once.
PRIORITY_SHARES: dict[Priority, int] = {"high": 16, "normal": 4, "low": 1}

_COMPACT_ABOVE = 64  # a lane keeps up to this many entries of cancelled texts before rewriting


class Call:
    """One caller, its texts' vectors as they arrive, and the future that gets them.

    Parameters
    ----------
    size : number of texts
    loop : the caller's event loop, or None for a plain thread
    submitted : time.perf_counter() at the start
    """

    __slots__ = ("answer", "error", "future", "items", "left", "loop", "progressed", "size",
                 "started", "submitted")  # fmt: skip

    def __init__(self, size: int, loop: asyncio.AbstractEventLoop | None, submitted: float) -> None:
        self.size = size
        self.loop = loop
        self.submitted = submitted
        self.progressed = math.inf  # when the caller began to wait or the last vector arrived
        self.started = 0.0  # when the first of its texts was taken by a worker
        self.left = size  # texts without a vector; below zero once the call is over early
        self.answer: Answer | None = None  # (size, dim), from the first vector on
        self.error: BaseException | None = None
        self.items: list[Item] = []
        self.future: LoopOutcome | concurrent.futures.Future[Answer] = (
            concurrent.futures.Future() if loop is None else LoopOutcome(loop=loop)
        )

    @property
    def is_open(self) -> bool:
        """Whether the caller still waits."""
        return self.left > 0

    def start_clock(self) -> None:
        """Start measuring the time without a vector; until then the call cannot expire."""
        self.progressed = time.perf_counter()

    def place_cached(self, vectors: Sequence[NDArray[np.float32] | None]) -> list[int]:
        """Place the vectors that the cache had; returns the positions of the others."""
        missing: list[int] = []
        for position, vector in enumerate(vectors):
            if vector is None:
                missing.append(position)
            else:
                self.place(position, vector)
        return missing

    def place(self, position: int, vector: NDArray[np.float32]) -> None:
        """Copy the vector of text `position` into the answer."""
        if self.answer is None:
            self.answer = np.empty((self.size, len(vector)), dtype=np.float32)
        self.answer[position] = vector
        self.left -= 1

    def give_up(self, error: BaseException | None = None) -> None:
        """End the call without an answer."""
        self.left = -1
        self.error = error
        self.answer = None
        self.items.clear()

    def resolve(self) -> None:
        """Give the caller its outcome; on its loop's thread, or on any for a plain thread."""
        self.items.clear()
        future = self.future
        if future.done():
            return
        if self.error is not None:
            future.set_exception(self.error)
        elif self.answer is None:
            return
        elif isinstance(future, LoopOutcome):
            future.settle(self.answer)
        else:
            future.set_result(self.answer)


class State(enum.Enum):
    """The state of an item."""

    WAITING = enum.auto()
    RUNNING = enum.auto()
    OVER = enum.auto()  # answered, failed, or no longer wanted


class Item:
    """One distinct text in flight and the calls that wait for it."""

    __slots__ = ("lane", "state", "text", "tokens", "waiters")

    def __init__(self, text: str, tokens: int, lane: Lane) -> None:
        self.text = text
        self.tokens = tokens
        self.lane = lane
        self.state = State.WAITING
        self.waiters: list[tuple[Call, int]] = []  # a call and the text's position in it

    @property
    def is_wanted(self) -> bool:
        """Whether any caller still waits for it."""
        return any(call.is_open for call, _ in self.waiters)


class Lane:
    """The waiting texts of one priority, first in first out."""

    __slots__ = ("entries", "pass_value", "rank", "stride", "waiting")

    def __init__(self, rank: int, share: int) -> None:
        self.rank = rank  # 0 is the most urgent
        self.stride = 1.0 / share
        self.pass_value = 0.0
        self.waiting = 0  # entries still to be taken; the others are stale
        self.entries: deque[Item] = deque()

    def holds(self, item: Item) -> bool:
        """Whether an entry is still to be taken from here."""
        return item.state is State.WAITING and item.lane is self

    def head(self) -> Item:
        """Return the next item to take; the lane has one waiting."""
        while not self.holds(self.entries[0]):
            self.entries.popleft()
        return self.entries[0]

    def compact(self) -> None:
        """Drop stale entries once they outnumber the others."""
        stale = len(self.entries) - self.waiting
        if stale > _COMPACT_ABOVE and stale > self.waiting:
            self.entries = deque(item for item in self.entries if self.holds(item))


class RequestQueue:
    """The waiting texts, in three lanes that share the throughput by stride scheduling.

    Each lane has a pass value that grows by tokens / share when it is served; the lane with the
    smallest value is served next. A lane that was empty joins at the current value, so that being
    idle earns no credit.

    Parameters
    ----------
    max_texts : maximum waiting texts
    """

    def __init__(self, max_texts: int) -> None:
        self.max_texts = max_texts
        self.texts = 0
        self.tokens = 0
        self.in_flight: dict[str, Item] = {}  # waiting or running
        self._lanes = {
            priority: Lane(rank, share)
            for rank, (priority, share) in enumerate(PRIORITY_SHARES.items())
        }
        self._pass_value = 0.0

    def add(
        self,
        call: Call,
        texts: Sequence[str],
        tokens: Sequence[int],
        positions: Sequence[int],
        priority: Priority,
        *,
        beyond_limit: bool = False,
    ) -> None:
        """Queue the texts at `positions` of a call; those already in flight are joined.

        Raises
        ------
        QueueFull
            If they do not fit and `beyond_limit` is false; then nothing is queued.
        """
        if not beyond_limit and self.texts + len(positions) > self.max_texts:
            new = {texts[i] for i in positions if texts[i] not in self.in_flight}
            if self.texts + len(new) > self.max_texts:
                raise QueueFull(
                    f"{self.texts} texts are waiting and {len(new)} more would exceed "
                    f"max_queue={self.max_texts}; retry later or raise it"
                )
        lane = self._lanes[priority]
        for position in positions:
            text = texts[position]
            item = self.in_flight.get(text)
            if item is None:
                item = self.in_flight[text] = Item(text, tokens[position], lane)
                self._enter(item, lane)
            elif item.state is State.WAITING and lane.rank < item.lane.rank:
                self._leave(item)  # a more urgent caller wants it; the old entry goes stale
                self._enter(item, lane)
            if item.state is State.RUNNING and not call.started:
                call.started = call.submitted
            item.waiters.append((call, position))
            call.items.append(item)

    def take(self, max_texts: int, max_tokens: int) -> list[Item]:
        """Take the next batch: at most `max_texts` and `max_tokens`, but at least one text.

        A text that does not fit ends the batch, so that a long one is not overtaken forever.
        """
        batch: list[Item] = []
        budget = max_tokens
        while self.texts and len(batch) < max_texts:
            lane = self._next_lane()
            item = lane.head()
            if batch and item.tokens > budget:
                break
            lane.entries.popleft()
            self._leave(item)
            item.state = State.RUNNING
            budget -= item.tokens
            self._pass_value = lane.pass_value
            lane.pass_value += item.tokens * lane.stride
            batch.append(item)
        return batch

    def drop(self, call: Call) -> None:
        """Forget a call that ended early; texts that no other call wants leave the queue."""
        items = call.items.copy()
        call.give_up(call.error)
        for item in items:
            if item.state is not State.WAITING:
                continue
            if item.is_wanted:
                item.waiters = [waiter for waiter in item.waiters if waiter[0] is not call]
            else:
                self.finish(item)
                self._leave(item)
                item.lane.compact()

    def finish(self, item: Item) -> None:
        """Take an item out of flight; the next call for its text starts a new item."""
        item.state = State.OVER
        if self.in_flight.get(item.text) is item:
            del self.in_flight[item.text]

    def waiting_calls(self) -> list[Call]:
        """Return every call that waits for a text, queued or running, each once."""
        calls = {
            id(call): call
            for item in self.in_flight.values()
            for call, _ in item.waiters
            if call.is_open
        }
        return list(calls.values())

    def _enter(self, item: Item, lane: Lane) -> None:
        if not lane.waiting:
            lane.pass_value = max(lane.pass_value, self._pass_value)
        item.lane = lane
        lane.waiting += 1
        lane.entries.append(item)
        self.texts += 1
        self.tokens += item.tokens

    def _leave(self, item: Item) -> None:
        lane = item.lane
        lane.waiting -= 1
        if not lane.waiting:
            lane.entries.clear()  # what is left is stale
        self.texts -= 1
        self.tokens -= item.tokens

    def _next_lane(self) -> Lane:
        best: Lane | None = None
        for lane in self._lanes.values():
            if lane.waiting and (best is None or lane.pass_value < best.pass_value):
                best = lane
        assert best is not None, "the queue counts texts that no lane holds"
        return best
