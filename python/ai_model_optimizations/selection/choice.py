"""How a choice among models is made and explained: pure functions of what is known about them.

A *candidate* is a model as it stands when a request comes; a *request* is what was asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from .model_shelf import Entry


class Request(NamedTuple):
    """What a selection was asked for."""

    language: str | None
    max_latency_ms: float | None
    max_memory_mb: float | None
    min_quality: float | None
    quality_priority: bool


class Candidate(NamedTuple):
    """A model as it was at the time of a selection."""

    entry: Entry
    tokens: int
    predicted_ms: float  # infinite before it was ever loaded
    loaded: bool


def candidate(entry: Entry, guess: float, is_ascii: bool) -> Candidate:
    """Return a model with its prediction for a text.

    Parameters
    ----------
    entry : the model
    guess : the text's tokens as :func:`guess_tokens` has them
    is_ascii : whether the text is ASCII
    """
    loaded = entry.engine is not None
    tokens = entry.tokens.correct(guess, is_ascii)
    predicted = math.inf
    if entry.profile is not None:
        predicted = entry.profile.predict(tokens if tokens < entry.reads else entry.reads)
        if not loaded:
            predicted += entry.load_ms
    return Candidate(entry, tokens, predicted, loaded)


class Selection:
    """One choice and why.

    Attributes
    ----------
    name : the chosen model
    predicted_ms : expected latency, loading included when it is not loaded; None before the model
        has ever been loaded
    quality : as registered
    space_id : the space of its vectors; None before it has been loaded
    max_latency_ms : the request's limit, kept for the observation of what it really took
    """

    __slots__ = ("_candidates", "_chosen", "_first", "_request", "max_latency_ms", "name",
                 "predicted_ms", "quality", "space_id")  # fmt: skip

    def __init__(
        self,
        chosen: Candidate,
        first: Candidate,
        candidates: Sequence[Candidate],
        request: Request,
    ) -> None:
        self.name = chosen.entry.name
        self.quality = chosen.entry.quality
        self.space_id = chosen.entry.space_id
        self.predicted_ms = None if chosen.predicted_ms == math.inf else chosen.predicted_ms
        self.max_latency_ms = request.max_latency_ms
        self._chosen = chosen
        self._first = first
        self._candidates = candidates
        self._request = request

    @property
    def reasons(self) -> dict[str, str]:
        """For every registered model, in order, why it was chosen or not."""
        return {c.entry.name: self._reason(c) for c in self._candidates}

    def _reason(self, candidate: Candidate) -> str:
        against = objection(candidate, self._request)
        if against is not None:
            return against
        if candidate is not self._chosen:
            if candidate.predicted_ms == math.inf:
                return "suitable, but its latency is unknown before it is first loaded"
            return f"suitable, but {self.name!r} is preferred"
        if candidate is not self._first:
            return f"chosen: variant of {self._first.entry.name!r}, which is slow now"
        return f"chosen: {'best quality' if self._request.quality_priority else 'quickest'}"

    def __repr__(self) -> str:
        return f"Selection(name={self.name!r}, predicted_ms={self.predicted_ms})"


def suits(candidate: Candidate, request: Request) -> bool:
    """Whether a model is suitable: :func:`objection` without the text, which is rarely read."""
    entry = candidate.entry
    if request.language is not None and not entry.speaks(request.language):
        return False
    if entry.max_tokens is not None and candidate.tokens > entry.max_tokens:
        return False
    if request.min_quality is not None and entry.quality < request.min_quality:
        return False
    if request.max_memory_mb is not None and (entry.memory_mb or 0.0) > request.max_memory_mb:
        return False
    if request.max_latency_ms is None or candidate.predicted_ms == math.inf:
        return True
    return candidate.predicted_ms <= request.max_latency_ms


def objection(candidate: Candidate, request: Request) -> str | None:
    """Say why a model is not suitable; None if it is."""
    if suits(candidate, request):
        return None
    entry = candidate.entry
    if request.language is not None and not entry.speaks(request.language):
        return f"language {request.language!r} is not among {sorted(entry.languages or ())}"
    if entry.max_tokens is not None and candidate.tokens > entry.max_tokens:
        return f"about {candidate.tokens} tokens, it reads {entry.max_tokens}"
    if request.min_quality is not None and entry.quality < request.min_quality:
        return f"quality {entry.quality:g} is below {request.min_quality:g}"
    if request.max_memory_mb is not None and (entry.memory_mb or 0.0) > request.max_memory_mb:
        return f"takes {entry.memory_mb:.0f} MiB, allowed are {request.max_memory_mb:g}"
    loading = "" if candidate.loaded else ", loading included"
    return (
        f"would take {candidate.predicted_ms:.1f} ms{loading}, "
        f"allowed are {request.max_latency_ms:g}"
    )


def by_latency(candidate: Candidate) -> tuple[float, float]:
    """Order by latency, the better of two equally quick ones first."""
    return candidate.predicted_ms, -candidate.entry.quality


def by_quality(candidate: Candidate) -> tuple[bool, float, float]:
    """Order by quality, the quicker of two equally good ones first."""
    # An unknown latency comes last: it cannot be promised.
    predicted = candidate.predicted_ms
    return predicted == math.inf, -candidate.entry.quality, predicted


def refusal(candidates: Sequence[Candidate], request: Request) -> str:
    """Say for each model why it is not suitable."""
    if not candidates:
        return "no model is registered"
    reasons = (f"{c.entry.name}: {objection(c, request)}" for c in candidates)
    return "no registered model meets the requirements; " + "; ".join(reasons)
