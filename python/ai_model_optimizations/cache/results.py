"""What lookups return, and what the cache remembers about them."""

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
    query : the text of the question this answer was stored for, None if unknown
    context : the context of both
    source : as given to `put`
    tags : as given to `put`
    age : seconds since it was stored
    guarded : whether guards compared the two questions; False if the text of one is unknown
    exact : whether the text was the same, so that no vector was needed
    entry : the entry's id, for ``invalidate(entry=hit.entry)``
    support : what was compared with the threshold: the similarity, or, in a cache with an
        `Agreement`, the support of all neighbours with this answer
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
    """An entry, as iteration returns it; `expires_in` is None if it never expires."""

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
    """An answer that shadow mode withheld; label some and pass them to `calibrate`."""

    query: str | None
    candidate: str | None
    similarity: float
    context: Context
    entry: int
    support: float
