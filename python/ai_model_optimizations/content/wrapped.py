"""An existing content manager as the plain manager behind the caches."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .answers import AnswerCaches, Found, Shareable, is_for_all
from .serial_executor import SerialExecutor


class WrappedPlain:
    """Calls ``find_response`` of a manager that was written for one thread.

    For coroutines it is called in a dedicated thread, one message after another, and plain calls
    wait for that thread at most `patience` seconds: a manager that hangs must not block them.

    Parameters
    ----------
    find_response : the manager's own
    owner : the manager; when its ``static_responses`` become another object, answers are forgotten
    shareable : called with (message, response, source); says whether others may get the answer, in
        addition to `is_for_all`
    patience : maximum seconds to wait for that thread
    """

    shares_by_meaning = True

    def __init__(
        self,
        find_response: Callable[[str], Any],
        owner: Any,
        caches: AnswerCaches,
        shareable: Shareable | None,
        patience: float,
    ) -> None:
        if inspect.iscoroutinefunction(find_response):
            raise TypeError("find_response: expected a plain method, got a coroutine function")
        if shareable is not None and not callable(shareable):
            raise TypeError(f"shareable: expected a function, got {type(shareable).__name__}")
        self._find_response = find_response
        self._owner = owner
        self._caches = caches
        self._shareable = shareable
        self._patience = patience
        self._turn = threading.RLock()
        self._content = self._static_responses()
        self.executor: SerialExecutor | None = SerialExecutor("aimo-content-plain")

    def check(self, message: object) -> None:
        """Accept any message: the manager itself decides."""

    def quick(self, message: str) -> Found | None:
        """Return None: its answers may take any time."""
        return None

    def prepare(self) -> Future[Any] | None:
        """Return None: nothing needs preparing."""
        return None

    def refresh(self) -> None:
        """Forget answers if the content was replaced."""
        content = self._static_responses()
        if content is not self._content:
            self._content = content
            self._caches.clear()

    def _static_responses(self) -> Any:
        # Not getattr: a property might load something.
        return getattr(self._owner, "__dict__", {}).get("static_responses")

    def answer(self, message: str, vector: NDArray[np.float32] | None) -> Found:
        """Call the manager."""
        held = self._turn.acquire(timeout=self._patience)
        try:
            given = self._find_response(message)
        finally:
            if held:
                self._turn.release()
        if (
            type(given) is not tuple
            or len(given) != 2
            or not all(isinstance(part, str) for part in given)
        ):
            return Found("", "", "no", given)
        response, source = given
        if not isinstance(message, str):
            return Found(response, source, "no")
        try:
            shared = is_for_all(message, response, source) and (
                self._shareable is None or self._shareable(message, response, source)
            )
        except Exception as error:  # the user's predicate failed, but the answer is valid
            return Found(response, source, "exact", trouble=error)
        return Found(response, source, "all" if shared else "exact")
