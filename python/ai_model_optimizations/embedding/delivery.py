"""Returns answers to their callers: one wake-up per event loop, one exception per caller."""

from __future__ import annotations

import asyncio
import copy
import time

from .metrics import BatchMetrics, Failure
from .request_queue import Call


def deliver(calls: list[Call], metrics: BatchMetrics, failure: Failure | None = None) -> None:
    """Resolve the futures: one wake-up per loop, however many of its callers are done.

    The dispatcher's lock must not be held.

    Parameters
    ----------
    calls : calls with an answer or an error
    failure : their kind of error; None counts them as answered
    """
    if not calls:
        return
    if failure is None:
        now = time.perf_counter()
        metrics.answered([(call.started - call.submitted, now - call.submitted) for call in calls])
    else:
        metrics.failed(failure, len(calls))
    by_loop: dict[asyncio.AbstractEventLoop, list[Call]] = {}
    for call in calls:
        if call.loop is None:
            call.resolve()
        else:
            by_loop.setdefault(call.loop, []).append(call)
    for loop, group in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve_all, group)
        except RuntimeError:  # the loop was closed; nobody is left to answer
            metrics.undelivered(len(group))


def _resolve_all(calls: list[Call]) -> None:
    """Resolve calls of one loop, in one of its callbacks; runs the tasks that wait for them."""
    for i, call in enumerate(calls):
        try:
            call.resolve()
        except BaseException:  # a task that ends the loop or is interrupted: not the others' fault
            if call.loop is not None and i + 1 < len(calls):
                call.loop.call_soon(_resolve_all, calls[i + 1 :])
            raise


def for_one_caller(error: BaseException) -> BaseException:
    """Return an exception that one caller can raise without touching another's traceback."""
    if isinstance(error, StopIteration) or not isinstance(error, Exception):
        # A future refuses StopIteration; the others would end the caller's loop or thread.
        wrapped = RuntimeError(f"the model raised {type(error).__name__}: {error}")
        wrapped.__cause__ = error
        return wrapped
    try:
        twin = copy.copy(error)
        is_equal = type(twin) is type(error) and bool(twin.args == error.args)
    except Exception:  # its constructor takes other arguments
        return error
    if not is_equal:  # its constructor changes its arguments
        return error
    twin.__cause__, twin.__context__ = error.__cause__, error.__context__
    twin.__suppress_context__ = error.__suppress_context__
    return twin.with_traceback(error.__traceback__)
