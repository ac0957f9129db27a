"""Arguments that several calls of a cache share: `DEFAULT`, and the checks of single values."""

from __future__ import annotations

import math
from collections.abc import Iterable


class Default:
    """The type of `DEFAULT`, which says "as the cache was told" where None means "never"."""

    def __repr__(self) -> str:
        return "DEFAULT"


DEFAULT = Default()


def checked_threshold(threshold: float) -> float:
    """The threshold as a float in [-1, 1]."""
    value = float(threshold)
    if not -1.0 <= value <= 1.0:
        raise ValueError(f"threshold is a cosine similarity in [-1, 1], got {threshold!r}")
    return value


def checked_ttl(ttl: float | None) -> float:
    """Seconds to live; infinity for None."""
    if ttl is None:
        return math.inf
    value = float(ttl)
    if not value > 0:
        raise ValueError(f"ttl must be positive seconds or None for never, got {ttl!r}")
    return value


def checked_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Each tag once."""
    if tags == ():
        return ()
    if isinstance(tags, str):
        raise TypeError("tags must be a sequence of strings, not one string")
    unique = tuple(dict.fromkeys(tags))
    if not all(isinstance(tag, str) for tag in unique):
        raise TypeError("tags must be strings")
    return unique
