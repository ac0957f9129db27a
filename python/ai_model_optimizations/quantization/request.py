"""The arguments of a ModelQuantizer call, checked once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

#: Storage types that weights can be quantized to, those with the fewest bytes first and the more
#: exact of equals.
DTYPES = ("int8", "f16", "bf16")
_HALVES = ("f16", "bf16")


@dataclass(frozen=True)
class Request:
    """One call of ``quantize_model``, as passed to the module for a kind of model."""

    #: One of :data:`DTYPES`, or ``"smallest"``: the one with the fewest bytes that keeps
    #: :attr:`least_cosine`.
    dtype: str
    skip: tuple[str | re.Pattern[str], ...] = ()
    #: None: the cosine is not requested.
    min_cosine: float | None = None
    #: None: the built-in texts, if a cosine is needed.
    verify_texts: tuple[str, ...] | None = None
    in_place: bool = False
    dry_run: bool = False
    #: Whether ``dtype`` was chosen for the machine and another 16-bit type will do.
    automatic: bool = False
    #: What shows an int8 module its inputs; see ``ModelQuantizer.quantize_model``.
    sample: Any = None

    @property
    def verifies(self) -> bool:
        """Whether the caller wants texts embedded before and after."""
        return (
            self.min_cosine is not None or self.verify_texts is not None or self.dtype == "smallest"
        )

    @property
    def least_cosine(self) -> float:
        """The smallest cosine with the given model's vectors that is good enough."""
        if self.min_cosine is not None:
            return self.min_cosine
        return 0.999 if self.dtype == "smallest" else -1.0

    def candidates(self) -> tuple[str, ...]:
        """Return the types to try in turn, the one with the fewest bytes first."""
        if self.dtype == "smallest":
            return DTYPES
        others = [dtype for dtype in _HALVES if dtype != self.dtype]
        return (self.dtype, *others) if self.automatic else (self.dtype,)

    def without_texts(self) -> Request:
        """Return the request for a model that cannot embed texts: 8 bits only if named."""
        dtype = "f16" if self.dtype == "smallest" else self.dtype
        return replace(self, dtype=dtype, min_cosine=None, verify_texts=None)

    def skips(self, name: str) -> bool:
        """Whether ``skip`` names this tensor or layer."""
        return any(matches(pattern, name) for pattern in self.skip)

    def check_skip(self, names: Iterable[str]) -> None:
        """Raise ValueError when an element of ``skip`` matches none of the model's names."""
        known = list(names)
        for pattern in self.skip:
            if not any(matches(pattern, name) for name in known):
                shown = pattern if isinstance(pattern, str) else pattern.pattern
                raise ValueError(f"skip: {shown!r} matches none of the model's {len(known)} names")


def matches(pattern: str | re.Pattern[str], name: str) -> bool:
    """Whether ``pattern`` is this name, a dotted prefix of it, or a regex for the whole name."""
    if isinstance(pattern, str):
        if name == pattern or name.startswith(pattern + "."):
            return True
        pattern = re.compile(pattern)
    return pattern.fullmatch(name) is not None


def check_skip_patterns(
    skip: str | re.Pattern[str] | Sequence[str | re.Pattern[str]],
) -> tuple[str | re.Pattern[str], ...]:
    """Return ``skip`` as a tuple; TypeError or ValueError names the element that is wrong."""
    if isinstance(skip, (str, re.Pattern)):
        skip = (skip,)
    if isinstance(skip, bytes) or not isinstance(skip, Iterable):
        raise TypeError(f"skip: expected names or regexes, got {type(skip).__name__}")
    patterns = tuple(skip)
    for index, pattern in enumerate(patterns):
        if not isinstance(pattern, (str, re.Pattern)):
            raise TypeError(
                f"skip[{index}]: expected str or a compiled pattern, got {type(pattern).__name__}"
            )
        if isinstance(pattern, str):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"skip[{index}]: {pattern!r} is neither a name nor a regex: {error}"
                ) from None
    return patterns
