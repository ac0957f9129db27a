"""Memory before and after a piece of work, and objects that are counted while they live."""

from __future__ import annotations

import functools
import inspect
import logging
import time
import weakref
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, overload

from . import process
from .snapshot import megabytes

_logger = logging.getLogger("ai_model_optimizations")
_P = ParamSpec("_P")
_R = TypeVar("_R")


class MemoryTracker:
    """Measures how the process's memory changes while a block runs.

    The whole process is measured, including what other threads allocate meanwhile. A tracker may be
    entered again; it then reports the last block.

    Parameters
    ----------
    name : for the log line and :meth:`to_dict`
    log_level : the line's level; ``logging.INFO`` to see it in most services

    Examples
    --------
    >>> with MemoryTracker("load") as tracker:
    ...     data = bytes(10_000_000)
    >>> tracker.delta_mb > 5
    True
    """

    def __init__(self, name: str = "block", *, log_level: int = logging.DEBUG) -> None:
        if not isinstance(name, str):
            raise TypeError(f"name must be a str, got {type(name).__name__}")
        self.name = name
        self._log_level = log_level
        self._before = self._after = process.memory()
        self._start = self._seconds = 0.0

    def __enter__(self) -> MemoryTracker:
        self._before = self._after = process.memory()
        self._start = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._seconds = time.perf_counter() - self._start
        self._after = process.memory()
        _logger.log(
            self._log_level,
            "%s: %+.1f MB in %.3f s, now %.1f MB",
            self.name,
            self.delta_mb,
            self._seconds,
            self.after_mb,
        )

    @property
    def before_mb(self) -> float:
        """The resident set at the start."""
        return megabytes(self._before.rss)

    @property
    def after_mb(self) -> float:
        """The resident set at the end."""
        return megabytes(self._after.rss)

    @property
    def delta_mb(self) -> float:
        """How much the resident set grew."""
        return megabytes(self._after.rss - self._before.rss)

    @property
    def peak_delta_mb(self) -> float:
        """How much the process's peak rose; 0 if the block stayed below an earlier peak."""
        return megabytes(self._after.peak - self._before.peak)

    @property
    def seconds(self) -> float:
        """How long the block ran."""
        return self._seconds

    def to_dict(self) -> dict[str, Any]:
        """Return the measurements as plain JSON."""
        return {
            "name": self.name,
            "before_mb": self.before_mb,
            "after_mb": self.after_mb,
            "delta_mb": self.delta_mb,
            "peak_delta_mb": self.peak_delta_mb,
            "seconds": round(self._seconds, 6),
        }


def _tracked(function: Callable[..., Any], name: str | None, log_level: int) -> Callable[..., Any]:
    label = name if name is not None else getattr(function, "__qualname__", "function")
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def track_coroutine(*args: Any, **kwargs: Any) -> Any:
            with MemoryTracker(label, log_level=log_level):
                return await function(*args, **kwargs)

        return track_coroutine
    if inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        async def track_async_generator(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
            with MemoryTracker(label, log_level=log_level), suppress(StopAsyncIteration):
                async with aclosing(function(*args, **kwargs)) as generator:
                    step = generator.asend(None)
                    while True:
                        item = await step
                        # What comes back is passed on, as `yield from` does for a generator.
                        try:
                            step = generator.asend((yield item))
                        except GeneratorExit:
                            raise
                        except BaseException as error:
                            step = generator.athrow(error)

        return track_async_generator
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def track_generator(*args: Any, **kwargs: Any) -> Any:
            with MemoryTracker(label, log_level=log_level):
                return (yield from function(*args, **kwargs))

        return track_generator

    @functools.wraps(function)
    def track_call(*args: Any, **kwargs: Any) -> Any:
        with MemoryTracker(label, log_level=log_level):
            return function(*args, **kwargs)

    return track_call


@overload
def track_memory(function: Callable[_P, _R], /) -> Callable[_P, _R]: ...
@overload
def track_memory(
    name: str | None = None, /, *, log_level: int = logging.DEBUG
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]: ...
def track_memory(
    function: Callable[..., Any] | str | None = None, /, *, log_level: int = logging.DEBUG
) -> Any:
    """Log how each call of a function changes the process's memory.

    Coroutine functions, generators and async generators keep their kind and are measured until they
    end, including what other code does while they wait.

    Use it plain, ``@track_memory``, or with a name and a level, ``@track_memory("load",
    log_level=logging.INFO)``.
    """
    if callable(function):
        return _tracked(function, None, log_level)
    if function is not None and not isinstance(function, str):
        raise TypeError(f"expected a function or a name, got {type(function).__name__}")
    return functools.partial(_tracked, name=function, log_level=log_level)


class TrackedObjects:
    """Counts objects until they die, without keeping them alive."""

    def __init__(self) -> None:
        self._living: dict[int, tuple[str, weakref.ref[Any]]] = {}

    def add(self, obj: object, name: str | None = None) -> None:
        """Count `obj` as `name`, or as its type's name. Calls no method of the object."""
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a str, got {type(name).__name__}")
        label = type.__dict__["__name__"].__get__(type(obj)) if name is None else name
        number, living = id(obj), self._living
        try:
            reference = weakref.ref(obj, lambda _: living.pop(number, None))
        except TypeError:
            raise TypeError(
                f"obj: a {label} cannot be tracked, it allows no weak reference"
            ) from None
        living[number] = (label, reference)

    def remove(self, obj: object) -> bool:
        """Stop counting `obj`; False if it was not counted."""
        return self._living.pop(id(obj), None) is not None

    def counts(self) -> dict[str, int]:
        """Return how many are alive, by name."""
        counts: dict[str, int] = {}
        for label, reference in list(self._living.values()):
            if reference() is not None:
                counts[label] = counts.get(label, 0) + 1
        return counts
