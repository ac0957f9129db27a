"""Arguments that several calls of a cache share: `DEFAULT`, and the checks of single values."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from numbers import Integral
from typing import Any


def _number(value: Any, expected: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{expected}, got {value!r}") from None
    except OverflowError:  # an integer too large for any float
        raise ValueError(f"{expected}, got {value!r}") from None


class Default:
    """The type of `DEFAULT`, which stands for the cache's own setting where None means "never"."""

    def __repr__(self) -> str:
        return "DEFAULT"


DEFAULT = Default()


def checked_threshold(threshold: float) -> float:
    """Return the threshold as a float in [-1, 1]."""
    value = _number(threshold, "threshold is a cosine similarity in [-1, 1]")
    if not -1.0 <= value <= 1.0:
        raise ValueError(f"threshold is a cosine similarity in [-1, 1], got {threshold!r}")
    return value


def checked_ttl(ttl: float | None) -> float:
    """Return the seconds to live; infinity for None."""
    if ttl is None:
        return math.inf
    value = _number(ttl, "ttl must be positive seconds or None for never")
    if not value > 0:
        raise ValueError(f"ttl must be positive seconds or None for never, got {ttl!r}")
    return value


def checked_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Return each tag once."""
    if tags == ():
        return ()
    if isinstance(tags, str) or not isinstance(tags, Iterable):
        raise TypeError(f"tags must be a sequence of strings, got {type(tags).__name__}")
    unique = tuple(dict.fromkeys(tags))
    if not all(isinstance(tag, str) for tag in unique):
        raise TypeError("tags must be strings")
    return unique


def checked_count(name: str, value: int, least: int) -> int:
    """Return an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def check_collaborators(
    embedder: object, serializer: object, space_id: object, normalize: object, clock: object
) -> None:
    """Refuse what would otherwise fail in a later call: an embedder, a serializer, a clock, ..."""
    if isinstance(embedder, str):  # str has an encode too, of another kind
        raise TypeError(
            f"embedder must be a model, got the string {embedder!r}: "
            "pass EmbeddingModel.load(name) or SentenceTransformer(name)"
        )
    encode = getattr(embedder, "encode", embedder)
    if embedder is not None and (not callable(encode) or inspect.iscoroutinefunction(encode)):
        kind = "a coroutine function" if callable(encode) else type(embedder).__name__
        raise TypeError(
            f"embedder must have encode(texts) or be a function of a list of texts, got {kind}"
        )
    if serializer is not None:
        for method in ("dumps", "loads"):
            if not callable(getattr(serializer, method, None)):
                raise TypeError(f"serializer must have {method}, got {type(serializer).__name__}")
    if space_id is not None and not isinstance(space_id, str):
        raise TypeError(f"space_id must be a string or None, got {type(space_id).__name__}")
    for name, function in (("normalize", normalize), ("clock", clock)):
        if not callable(function):
            raise TypeError(f"{name} must be a function, got {type(function).__name__}")
