"""How a manager caches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from ..cache import Agreement
from ..cache.cache_arguments import checked_count
from ..cache.guards import GuardSpec
from .answers import AnswerCaches

#: Static content repeats its answers, so the nearest entries can decide together.
AGREEMENT: Final = Agreement()


@dataclass(frozen=True)
class Options:
    """How a manager caches; managers with equal options may share caches."""

    similarity_threshold: float = 0.85
    ttl: float | None = 3600.0
    max_size: int = 10_000
    guard: GuardSpec = "auto"
    agreement: Agreement | None = AGREEMENT
    mode: Literal["serve", "shadow"] = "serve"
    timeout: float = 30.0
    loop_budget: float = 0.25

    def __post_init__(self) -> None:
        checked_count("max_size", self.max_size, 1)
        for name in ("timeout", "loop_budget"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise ValueError(f"{name}: expected seconds above 0, got {value!r}")

    def caches(self) -> AnswerCaches:
        """Return new caches with these options."""
        return AnswerCaches(
            threshold=self.similarity_threshold,
            ttl=self.ttl,
            max_entries=self.max_size,
            guard=self.guard,
            agreement=self.agreement,
            mode=self.mode,
        )

    @property
    def key(self) -> tuple[Any, ...]:
        """Return a key that is equal for equal options; guard objects are compared by identity."""
        values = {**vars(self), "guard": self.guard if isinstance(self.guard, str) else None}
        return (*sorted(values.items()), id(self.guard))
