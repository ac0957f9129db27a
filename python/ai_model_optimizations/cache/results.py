"""What lookups return and what the cache remembers of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .contexts import Context


@dataclass(frozen=True, slots=True)
class CacheHit:
    """An answer of the cache.

    Attributes
    ----------
    value : what was stored; JSON values are a fresh copy
    similarity : cosine of the two questions; 1.0 when the text is the same
    query : the question this answer was stored for, None if it was not given
    context : the context of both
    source : what `put` was told
    tags : what `put` was told
    age : seconds since it was stored
    guarded : whether guards compared the two questions; False when one is not known
    exact : whether the text was the same, so that no vector was needed
    entry : names the entry, for ``invalidate(entry=hit.entry)``
    support : what the threshold was compared with: the similarity, or, in a cache with an
        `Agreement`, what the neighbours say together
    """

    value: Any
    similarity: float
    query: str | None
    context: Context
    source: str | None
    tags: tuple[str, ...]
    age: float
    guarded: bool
    exact: bool
    entry: int
    support: float


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """An entry as iteration shows it; `expires_in` is None when it never expires."""

    entry: int
    value: Any
    query: str | None
    context: Context
    source: str | None
    tags: tuple[str, ...]
    age: float
    expires_in: float | None
    hits: int
    cost: float


@dataclass(frozen=True, slots=True)
class Rejection:
    """A candidate above the threshold that a guard or its neighbours refused, and why."""

    query: str | None
    candidate: str | None
    similarity: float
    reason: str
    context: Context
    entry: int


@dataclass(frozen=True, slots=True)
class ShadowHit:
    """An answer that shadow mode kept back; judge some and give them to `calibrate`."""

    query: str | None
    candidate: str | None
    similarity: float
    context: Context
    entry: int
    support: float
