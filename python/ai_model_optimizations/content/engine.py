"""How a message is answered: exact cache, answers without a vector, semantic cache, plain manager.

There are three forms of the same steps: `find` for plain calls, `find_async` for coroutines,
`find_many` for batches. They differ in how they wait, never in what they answer. An error in an
optimization becomes a counted fallback; the plain manager's errors go to the caller, as before.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from ..cache.contexts import Context, context_key
from ..cache.single_flight import SingleFlight
from .answers import Answer, AnswerCaches, Found
from .embedder import SharedEmbedder
from .serial_executor import SerialExecutor
from .statistics import Origin, Statistics

_Vector = NDArray[np.float32]
# Longer messages are not questions that are likely to be repeated; they go to the plain manager.
_LONGEST_MESSAGE: Final = 8192
# How many messages of a batch are looked up before the event loop gets a turn.
_AT_ONCE: Final = 32


class Plain(Protocol):
    """A plain manager behind the caches."""

    #: Whether its answers may be served to messages of similar meaning.
    shares_by_meaning: bool

    def check(self, message: object) -> None:
        """Raise TypeError for a message that it cannot answer."""

    def refresh(self) -> None:
        """Check whether answers have changed; must be quick."""

    def quick(self, message: str) -> Found | None:
        """Return an answer that needs neither a vector nor time; None if there is none."""

    def prepare(self) -> Future[Any] | None:
        """Start what must finish before `answer` can use a vector; None if nothing must."""

    def answer(self, message: str, vector: _Vector | None) -> Found:
        """Return the answer; blocks as long as it takes."""

    @property
    def executor(self) -> SerialExecutor | None:
        """Where `answer` is run for coroutines; None if it is quick enough for the loop."""


@dataclass
class _Request:
    """One message and how it may be answered."""

    message: str
    context: Context
    counted: bool  # False while optimizations are off
    cached: bool  # whether the caches may answer it and keep its answer
    embeds: bool  # whether it needs a vector if nothing answers earlier
    began: float
    generation: int
    vector: _Vector | None = None
    meaning: bool = False  # whether the semantic cache may answer


class AnswerEngine:
    """Caches in front of a plain manager.

    Parameters
    ----------
    plain : what answers if the caches do not
    caches, embedder : may be shared with other managers
    timeout : maximum seconds that a caller waits for an answer
    loop_budget : maximum seconds that a plain call inside a running event loop waits for a vector
    """

    def __init__(
        self,
        plain: Plain,
        caches: AnswerCaches,
        embedder: SharedEmbedder,
        *,
        timeout: float,
        loop_budget: float,
    ) -> None:
        self.plain = plain
        self.caches = caches
        self.embedder = embedder
        self.statistics = Statistics()
        self.enabled = True
        self._timeout = timeout
        self._loop_budget = loop_budget
        self._flights: weakref.WeakKeyDictionary[
            asyncio.AbstractEventLoop, SingleFlight[Answer]
        ] = weakref.WeakKeyDictionary()

    # ---- plain calls ----

    def find(self, message: str, context: Context = "", quality: bool = False) -> Answer:
        """Answer a message; inside a running event loop, within `loop_budget`."""
        request = self._begin(message, context, quality)
        early = self._early(request)
        if early is not None:
            return early
        self._embed_blocking(request)
        similar = self._similar(request)
        return similar if similar is not None else self._finish(request)

    def _embed_blocking(self, request: _Request) -> None:
        budget = self._loop_budget if in_event_loop() else None
        try:
            if not request.embeds:
                return
            prepared = self.plain.prepare()
            if prepared is not None and not prepared.done():
                _result_within(prepared, self._timeout if budget is None else budget)
            elif prepared is not None:
                prepared.result()
            request.vector = (
                self.embedder.embed_sync(request.message)
                if budget is None
                else self.embedder.embed_within(request.message, budget)
            )
        except Exception as error:
            self._fell_back(error)

    # ---- coroutines ----

    async def find_async(
        self, message: str, context: Context = "", quality: bool = False
    ) -> Answer:
        """Answer a message without blocking the event loop.

        Raises
        ------
        TimeoutError
            If the plain manager gives no answer in time.
        """
        request = self._begin(message, context, quality)
        early = self._early(request)
        if early is not None:
            return early
        if not request.cached:
            return await self._find_slowly(request)
        loop = asyncio.get_running_loop()
        flights = self._flights.get(loop)
        if flights is None:
            flights = self._flights[loop] = SingleFlight()
        led: list[bool] = []

        async def lead() -> Answer:
            led.append(True)
            return await self._find_slowly(request)

        try:
            found = await flights.run_async((context_key(context), message, quality), lead)
        except Exception:
            if not led:
                self.statistics.failed()
            raise
        # A caller that did not lead shares the answer to somebody else's question: a hit.
        return found if led else self._answered(request, found, "exact")

    async def _find_slowly(self, request: _Request) -> Answer:
        try:
            if request.embeds:
                await self._prepare_async()
                request.vector = await self.embedder.embed(request.message)
        except Exception as error:
            self._fell_back(error)
        similar = self._similar(request)
        return similar if similar is not None else await self._finish_async(request)

    async def _prepare_async(self) -> None:
        prepared = self.plain.prepare()
        if prepared is None:
            return
        if not prepared.done():
            # Shielded: one caller's timeout must not cancel what the others wait for.
            await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(prepared)), self._timeout)
        prepared.result()

    async def find_many(
        self, messages: Sequence[str], context: Context = "", quality: bool = False
    ) -> list[Answer]:
        """Answer messages of one context; what must be embedded is one batch."""
        self.statistics.batch()
        answers: list[Answer | None] = [None] * len(messages)
        open_requests: dict[str, tuple[_Request, list[int]]] = {}
        for i, message in enumerate(messages):
            if i % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)
            if isinstance(message, str) and message in open_requests:
                open_requests[message][1].append(i)
                continue
            request = self._begin(message, context, quality)
            answers[i] = self._early(request)
            if answers[i] is None and request.cached:
                open_requests[message] = (request, [i])
            elif answers[i] is None:
                answers[i] = await self._find_slowly(request)
        await self._embed_together([request for request, _ in open_requests.values()])
        for number, (request, places) in enumerate(open_requests.values()):
            if number % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)
            found = self._similar(request) or await self._finish_async(request)
            for place in places:
                answers[place] = found
            for _ in places[1:]:
                self.statistics.answered("exact", time.perf_counter() - request.began)
        return cast("list[Answer]", answers)

    async def _embed_together(self, requests: list[_Request]) -> None:
        asked = [request for request in requests if request.embeds]
        if not asked:
            return
        try:
            await self._prepare_async()
            rows = await self.embedder.embed_many([request.message for request in asked])
        except Exception as error:
            for _ in asked:
                self._fell_back(error)
            return
        for request, row in zip(asked, rows, strict=True):
            request.vector = row

    # ---- the steps ----

    def _begin(self, message: str, context: Context, quality: bool) -> _Request:
        """Start a request and decide which steps it may use."""
        self.plain.check(message)
        context_key(context)  # a wrong context is the caller's mistake, not a fallback
        request = _Request(
            message=message,
            context=context,
            counted=self.enabled,
            cached=False,
            embeds=False,
            began=time.perf_counter(),
            generation=self.caches.generation,
        )
        try:
            self.plain.refresh()
        except Exception as error:
            self._fell_back(error)
        unfit = _unfit(message)
        if unfit is not None:
            self.statistics.fallback(unfit)
            return request
        request.cached = self.enabled and self.caches.enabled
        request.meaning = request.cached and self.plain.shares_by_meaning and not quality
        request.embeds = request.cached or not self.plain.shares_by_meaning
        request.generation = self.caches.generation
        return request

    def _early(self, request: _Request) -> Answer | None:
        """The same text's answer, or one that needs no vector."""
        try:
            if request.cached:
                known = self.caches.find_exact(request.message, request.context)
                if known is not None:
                    return self._answered(request, known, "exact")
            quick = self.plain.quick(request.message)
        except Exception as error:
            self._fell_back(error)
            return None
        return None if quick is None else self._answered(request, quick.answer, "quick")

    def _similar(self, request: _Request) -> Answer | None:
        if request.vector is None or not request.meaning:
            return None
        try:
            found = self.caches.find_similar(
                request.message, request.context, request.vector, request.generation
            )
        except Exception as error:
            self._fell_back(error)
            return None
        if found is None:
            return None
        return self._answered(request, found[0], "exact" if found[1] else "semantic")

    def _finish(self, request: _Request) -> Answer:
        # A hit saves these seconds; the "cost" policy and the statistics use them.
        began = time.perf_counter()
        try:
            found = self.plain.answer(request.message, request.vector)
        except BaseException:
            self.statistics.failed()
            raise
        return self._keep(request, found, time.perf_counter() - began)

    async def _finish_async(self, request: _Request) -> Answer:
        executor = self.plain.executor
        # The thread is current when the manager asks itself, in an event loop of its own.
        if executor is None or executor.is_current():
            return self._finish(request)
        began = time.perf_counter()
        try:
            found = await self._in_executor(executor, request.message, request.vector)
        except BaseException:
            self.statistics.failed()
            raise
        return self._keep(request, found, time.perf_counter() - began)

    async def _in_executor(
        self, executor: SerialExecutor, message: str, vector: _Vector | None
    ) -> Found:
        context = contextvars.copy_context()  # what the caller's logging and tracing rely on
        future = executor.submit(lambda: context.run(self.plain.answer, message, vector))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._timeout)
        except asyncio.TimeoutError:
            if future.done() and not future.cancelled():
                raise  # the manager's own TimeoutError
            raise TimeoutError(f"no answer within {self._timeout} s") from None

    def _keep(self, request: _Request, found: Found, seconds: float) -> Answer:
        if found.trouble is not None:
            self._fell_back(found.trouble)
        if request.cached:
            try:
                self.caches.store(
                    request.message,
                    request.context,
                    found,
                    request.vector,
                    request.generation,
                    seconds,
                )
            except Exception as error:
                self._fell_back(error)
        return self._answered(request, found.answer, "plain")

    def _answered(self, request: _Request, answer: Answer, origin: Origin) -> Answer:
        if request.counted:
            self.statistics.answered(origin, time.perf_counter() - request.began)
        else:
            self.statistics.bypassed()
        return answer

    def _fell_back(self, error: Exception) -> None:
        # Three classes before Python 3.11, one since.
        kinds = (TimeoutError, asyncio.TimeoutError, concurrent.futures.TimeoutError)
        timed_out = isinstance(error, kinds)
        self.statistics.fallback("timeout" if timed_out else type(error).__name__, error)


def _unfit(message: object) -> str | None:
    """Return why no optimization handles a message; None if they do."""
    if not isinstance(message, str):
        return "not a string"
    if len(message) > _LONGEST_MESSAGE:
        return "too long"
    return None if message.strip() else "blank"


def in_event_loop() -> bool:
    """Whether this thread runs an event loop now."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _result_within(future: Future[Any], seconds: float) -> None:
    try:
        future.result(seconds)
    except concurrent.futures.TimeoutError:
        raise TimeoutError(f"not prepared within {seconds} s") from None
