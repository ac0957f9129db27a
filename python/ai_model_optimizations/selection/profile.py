"""What a model costs on this machine: milliseconds by the tokens of one text, and memory."""

from __future__ import annotations

import statistics
import time
from bisect import bisect_left
from dataclasses import dataclass
from typing import Final

from ..embedding.engine import Engine

_TOKEN_COUNTS: Final = (4, 8, 16, 32, 64, 128, 256, 512)
_LEAST_RUNS: Final = 3
_WORD: Final = "time "  # one token in every vocabulary that knows English


@dataclass(frozen=True)
class LatencyProfile:
    """Latency as a piecewise linear function of a text's tokens.

    Attributes
    ----------
    tokens : token counts that were measured, rising
    milliseconds : median latency at each, never falling
    """

    tokens: tuple[int, ...]
    milliseconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.tokens or len(self.tokens) != len(self.milliseconds):
            raise ValueError(
                f"tokens and milliseconds: expected two tuples of one length above 0, "
                f"got {len(self.tokens)} and {len(self.milliseconds)}"
            )

    def predict(self, tokens: float) -> float:
        """Return the milliseconds that one text of `tokens` takes."""
        xs, ys = self.tokens, self.milliseconds
        if tokens <= xs[0] or len(xs) == 1:
            return ys[0]
        # Beyond the last point the last slope goes on.
        i = min(bisect_left(xs, tokens), len(xs) - 1)
        slope = (ys[i] - ys[i - 1]) / (xs[i] - xs[i - 1])
        return ys[i - 1] + slope * (tokens - xs[i - 1])


def measure(engine: Engine, seconds: float = 0.3) -> LatencyProfile:
    """Measure a loaded model with texts of 4 to 512 tokens, or as many as it reads.

    Parameters
    ----------
    engine
        The model; it is called from this thread.
    seconds
        Time to spend. Every length is run three times at least, so a slow model takes longer.
    """
    limit = engine.max_seq_length or _TOKEN_COUNTS[-1]
    texts = {}
    for target in sorted({min(count, limit) for count in _TOKEN_COUNTS}):
        text = _WORD * max(target - 2, 1)
        counter = engine.token_counter
        texts[int(counter([text])[0]) if counter is not None else target] = text
    engine.encode([_WORD])  # the first call pays for what later ones share
    points = _median_ms(engine, texts, seconds)
    rising: list[float] = []
    for tokens in sorted(points):
        rising.append(max(points[tokens], rising[-1] if rising else 0.0))
    return LatencyProfile(tuple(sorted(points)), tuple(rising))


def _median_ms(engine: Engine, texts: dict[int, str], seconds: float) -> dict[int, float]:
    """Run the texts in turn, so that none finds the caches as it left them: nobody asks twice."""
    times: dict[int, list[float]] = {tokens: [] for tokens in texts}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < _LEAST_RUNS or time.perf_counter() < end:
        for tokens, text in texts.items():
            start = time.perf_counter()
            engine.encode([text])
            times[tokens].append((time.perf_counter() - start) * 1e3)
        rounds += 1
    return {tokens: statistics.median(taken) for tokens, taken in times.items()}
