"""Deciding by all entries near a question instead of the nearest alone.

A cosine says how similar two questions are, not whether they have the same answer: the cosines of
right and wrong hits overlap. Where answers repeat, as in static content, the neighbours together
know more: near entries with the same answer count for it, near entries with another against it.

This is a kernel density estimate. An entry of cosine s has weight exp(s / softness). The total
weight of the entries with one answer, less `rivalry` times that of all others, is converted back to
the scale of a cosine by softness * ln(...): the answer's *support*. A single entry supports its
answer with exactly its cosine, so a threshold means the same as without agreement.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final

_BELOW_ONE: Final = math.nextafter(1.0, 0.0)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How neighbours count; for `SmartCache(agreement=...)`.

    Parameters
    ----------
    softness : the difference of cosines that divides a weight by e. Towards 0, only the nearest
        entry counts; n entries of one cosine add softness * ln(n) to it.
    rivalry : how much entries with another answer weigh against an answer, relative to those that
        weigh for it; with 0 they do not count
    neighbours : the most entries that count, the nearest ones
    """

    softness: float = 0.05
    rivalry: float = 2.0
    neighbours: int = 12

    def __post_init__(self) -> None:
        if not 0.0 < self.softness <= 1.0:
            raise ValueError(f"softness must be in (0, 1], got {self.softness!r}")
        if not 0.0 <= self.rivalry < math.inf:
            raise ValueError(f"rivalry must be finite and not negative, got {self.rivalry!r}")
        if isinstance(self.neighbours, bool) or not isinstance(self.neighbours, int):
            raise TypeError(f"neighbours must be an int, got {type(self.neighbours).__name__}")
        if not 1 <= self.neighbours <= 1024:
            raise ValueError(f"neighbours must be in 1..1024, got {self.neighbours!r}")

    def reach(self, threshold: float) -> float:
        """Return the cosine below which not even all neighbours together reach the threshold."""
        return max(-1.0, threshold - self.softness * math.log(self.neighbours))

    def may_support(
        self, threshold: float, similarities: Sequence[float], answers: Sequence[Hashable]
    ) -> bool:
        """Whether some answer reaches the threshold if no entry counts against it."""
        heaviest = max(self._weights(similarities, answers).values())
        return self._cosine(heaviest, similarities[0]) >= threshold

    def decide(
        self, similarities: Sequence[float], answers: Sequence[Hashable]
    ) -> tuple[int, float]:
        """Find the best supported answer.

        Parameters
        ----------
        similarities : of the entries that count, nearest first; at least one
        answers : the answer of each

        Returns
        -------
        The position of the answer's nearest entry, and the answer's support, which is below every
        threshold if the other answers outweigh it.
        """
        weights = self._weights(similarities, answers)
        answer = max(weights, key=weights.__getitem__)
        own = weights.pop(answer)
        left = own - self.rivalry * math.fsum(weights.values())
        return list(answers).index(answer), self._cosine(left, similarities[0])

    def _weights(
        self, similarities: Sequence[float], answers: Sequence[Hashable]
    ) -> dict[Hashable, float]:
        """Return the total weight of each answer's entries, relative to the nearest entry's."""
        found: dict[Hashable, float] = {}
        for similarity, answer in zip(similarities, answers, strict=True):
            weight = math.exp((similarity - similarities[0]) / self.softness)
            found[answer] = found.get(answer, 0.0) + weight
        return found

    def _cosine(self, weight: float, nearest: float) -> float:
        """Convert a weight to the scale of a cosine; only an equal question has 1."""
        if weight <= 0.0:
            return -math.inf
        return min(nearest + self.softness * math.log(weight), max(nearest, _BELOW_ONE))
