"""What a guard is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Literal, TypeAlias

from .english import ENGLISH
from .text_guard import TextGuard
from .turkish import TURKISH

#: Called with the question and the candidate's question; returns why the candidate must not
#: answer, or None when it may. Reasons become metric labels: keep them few.
Guard: TypeAlias = Callable[[str, str], str | None]
GuardSpec: TypeAlias = Literal["auto"] | Guard | Sequence[Guard] | None


class _AllOf:
    """Asks several guards; the first refusal counts."""

    def __init__(self, guards: tuple[Guard, ...]) -> None:
        self._guards = guards

    def __call__(self, query: str, candidate: str) -> str | None:
        return next((reason for guard in self._guards if (reason := guard(query, candidate))), None)


@lru_cache(maxsize=1)
def _automatic() -> TextGuard:
    """One guard for all caches, so that they share what it knows of the texts."""
    return TextGuard((ENGLISH, TURKISH))


def make_guard(spec: GuardSpec) -> Guard | None:
    """The guard that `SmartCache(guard=...)` names.

    Parameters
    ----------
    spec : "auto" for `TextGuard` in English and Turkish, None for no guard, a callable, or a
        sequence of callables of which the first refusal counts
    """
    if spec is None:
        return None
    if isinstance(spec, str):
        if spec != "auto":
            raise ValueError(f'guard must be "auto", None or callables, got {spec!r}')
        return _automatic()
    guards = (spec,) if callable(spec) else tuple(spec) if isinstance(spec, Iterable) else ()
    if not guards or not all(callable(guard) for guard in guards):
        raise TypeError("guard must be a callable or a non-empty sequence of callables")
    return guards[0] if len(guards) == 1 else _AllOf(guards)
