"""What the entries around a question say together.

A cosine tells how alike two questions are, not whether they have one answer: right and wrong hits
overlap in it. Where answers repeat, as those of static content do, the neighbours know more: near
entries that hold the same answer speak for it, near entries that hold another against it.

This is a kernel density estimate. An entry of cosine s weighs exp(s / softness). What the entries
of one answer weigh together, less `rivalry` times what all others weigh, is brought back to the
scale of a cosine by softness * ln(...): the answer's *support*. One entry alone supports its answer
with just its cosine, so a threshold means what it means without agreement.
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
        entry counts; n entries at one cosine add softness * ln(n) to it.
    rivalry : how much more an entry with another answer weighs against than one with the answer
        weighs for it; 0 lets nothing speak against
    neighbours : most entries that count, the nearest ones
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
        """The cosine below which not even all neighbours together reach the threshold."""
        return max(-1.0, threshold - self.softness * math.log(self.neighbours))

    def may_support(
        self, threshold: float, similarities: Sequence[float], answers: Sequence[Hashable]
    ) -> bool:
        """Whether some answer reaches the threshold when nothing speaks against it."""
        heaviest = max(self._weights(similarities, answers).values())
        return self._cosine(heaviest, similarities[0]) >= threshold

    def decide(
        self, similarities: Sequence[float], answers: Sequence[Hashable]
    ) -> tuple[int, float]:
        """The best supported answer's nearest entry and its support.

        Parameters
        ----------
        similarities : of the entries that count, nearest first; at least one
        answers : what each holds

        Returns
        -------
        the entry's place, and the support, which is below every threshold when the others weigh
        more
        """
        weights = self._weights(similarities, answers)
        answer = max(weights, key=weights.__getitem__)
        own = weights.pop(answer)
        left = own - self.rivalry * math.fsum(weights.values())
        return list(answers).index(answer), self._cosine(left, similarities[0])

    def _weights(
        self, similarities: Sequence[float], answers: Sequence[Hashable]
    ) -> dict[Hashable, float]:
        """What the entries of each answer weigh, when the nearest weighs 1."""
        found: dict[Hashable, float] = {}
        for similarity, answer in zip(similarities, answers, strict=True):
            weight = math.exp((similarity - similarities[0]) / self.softness)
            found[answer] = found.get(answer, 0.0) + weight
        return found

    def _cosine(self, weight: float, nearest: float) -> float:
        """A weight on the scale of a cosine; only an equal question has 1."""
        if weight <= 0.0:
            return -math.inf
        return min(nearest + self.softness * math.log(weight), max(nearest, _BELOW_ONE))
