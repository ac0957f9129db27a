"""Exceptions that futures carry from one thread to another."""

from __future__ import annotations


def for_a_future(error: BaseException) -> BaseException:
    """Return the exception; for StopIteration the RuntimeError that a coroutine makes of it.

    An asyncio future of Python before 3.12 refuses StopIteration in a callback and never ends.
    """
    if not isinstance(error, StopIteration):
        return error
    wrapped = RuntimeError("the call raised StopIteration")
    wrapped.__cause__ = error
    return wrapped
