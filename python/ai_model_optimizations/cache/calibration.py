"""Choosing the threshold from labelled pairs, with a statistical bound on wrong hits.

The share of wrong hits among a few hundred pairs is uncertain; the limit applies to its upper
Wilson bound. The curve is drawn as text and as SVG, so that no plotting package is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeAlias

import numpy as np

from .guards import Guard
from .results import ShadowHit
from .vectors import Embedder, embed

_PLOT_WIDTH, _PLOT_HEIGHT = 640, 360
_MARGIN = 48


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """A question, the entry that would answer it, and whether that answer is right.

    Attributes
    ----------
    similarity : cosine of the two; in a cache with an `Agreement`, the support of the answer
    same : whether the entry's answer answers the question
    query, candidate : the texts, if known; the guard judges pairs that have both
    """

    similarity: float
    same: bool
    query: str | None = None
    candidate: str | None = None

    @classmethod
    def of(cls, hit: ShadowHit, same: bool) -> LabelledPair:
        """Return a labelled pair for a hit of shadow mode."""
        return cls(hit.support, same, hit.query, hit.candidate)


PairLike: TypeAlias = LabelledPair | tuple[str, str, bool] | tuple[float, bool]


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One threshold: how many of the pairs hit, and how many of those hits are wrong."""

    threshold: float
    hits: int
    wrong: int
    hit_rate: float
    false_hit_rate: float
    upper_bound: float


@dataclass(frozen=True)
class Calibration:
    """The curve, and the lowest threshold that meets the bound; None when none does."""

    threshold: float | None
    max_false_hit_rate: float
    confidence: float
    pairs: int
    refused_by_guard: int
    curve: tuple[CurvePoint, ...]

    def __str__(self) -> str:
        lines = [
            f"{self.pairs} pairs, {self.refused_by_guard} refused by the guard; wrong hits at most "
            f"{self.max_false_hit_rate:.1%} of hits (upper bound, {self.confidence:.0%})",
            "threshold   hits  wrong  hit rate  wrong/hits  at most",
        ]
        for point in self._thinned(24):
            chosen = " <" if point.threshold == self.threshold else ""
            bar = "#" * round(point.hit_rate * 30)
            lines.append(
                f"   {point.threshold:.4f} {point.hits:6d} {point.wrong:6d}  {point.hit_rate:8.1%}"
                f"      {point.false_hit_rate:6.1%}   {point.upper_bound:6.1%} |{bar}{chosen}"
            )
        if self.threshold is None:
            lines.append("no threshold meets the bound with these pairs; more pairs narrow it")
        else:
            lines.append(f"chosen: {self.threshold:.4f}")
        return "\n".join(lines)

    def _thinned(self, wanted: int) -> list[CurvePoint]:
        """Return some points spread over the curve, including the chosen one."""
        step = max(1, math.ceil(len(self.curve) / wanted))
        return [
            point
            for i, point in enumerate(self.curve)
            if i % step == 0 or point.threshold == self.threshold
        ]

    def svg(self) -> str:
        """Draw hit rate and wrong hits over the threshold, as an SVG document."""
        return _draw(self)


def wilson_upper(wrong: int, total: int, confidence: float) -> float:
    """Return the upper end of a share's one-sided Wilson score interval; 1 if `total` is 0."""
    if total == 0:
        return 1.0
    z = NormalDist().inv_cdf(confidence)
    share = wrong / total
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return min(1.0, (share + z * z / (2 * total) + spread) / (1 + z * z / total))


def measure_pairs(pairs: Iterable[PairLike], embedder: Embedder | None) -> list[LabelledPair]:
    """Convert pairs of any form to `LabelledPair`; texts are embedded in one call."""
    given = list(pairs)
    texts: list[str] = []
    for i, pair in enumerate(given):
        if isinstance(pair, LabelledPair):
            continue
        if not isinstance(pair, (tuple, list)) or len(pair) not in (2, 3):
            raise TypeError(
                f"pairs[{i}]: expected a LabelledPair, (question, candidate, same_answer) or "
                f"(similarity, same_answer), got {type(pair).__name__}"
            )
        if len(pair) == 3:
            texts.extend(pair[:2])
    if texts and embedder is None:
        raise TypeError("pairs of texts need an embedder: SmartCache(embedder=...)")
    unique = list(dict.fromkeys(texts))
    row_of = {text: i for i, text in enumerate(unique)}
    if embedder is not None and unique:
        rows = embed(embedder, unique).astype(np.float64)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    measured = []
    for pair in given:
        if isinstance(pair, LabelledPair):
            measured.append(pair)
        elif len(pair) == 3:
            query, candidate, same = pair
            similarity = float(rows[row_of[query]] @ rows[row_of[candidate]])
            measured.append(LabelledPair(similarity, bool(same), query, candidate))
        else:
            measured.append(LabelledPair(float(pair[0]), bool(pair[1])))
    return measured


def calibrate_pairs(
    pairs: Sequence[LabelledPair],
    guard: Guard | None,
    max_false_hit_rate: float,
    confidence: float,
) -> Calibration:
    """Choose the lowest threshold whose upper bound of wrong hits is within the limit."""
    if not pairs:
        raise ValueError("pairs must not be empty")
    for i, pair in enumerate(pairs):
        if not math.isfinite(pair.similarity):
            raise ValueError(f"pairs[{i}]: a similarity is a finite number, got {pair.similarity}")
    if not 0.0 < max_false_hit_rate < 1.0:
        raise ValueError(f"max_false_hit_rate must be in (0, 1), got {max_false_hit_rate!r}")
    if not 0.5 <= confidence < 1.0:
        raise ValueError(f"confidence must be in [0.5, 1), got {confidence!r}")
    allowed = [
        pair
        for pair in pairs
        if guard is None
        or pair.query is None
        or pair.candidate is None
        or guard(pair.query, pair.candidate) is None
    ]
    curve = _curve(allowed, len(pairs), confidence)
    meeting = [point for point in curve if point.upper_bound <= max_false_hit_rate]
    return Calibration(
        threshold=meeting[0].threshold if meeting else None,
        max_false_hit_rate=max_false_hit_rate,
        confidence=confidence,
        pairs=len(pairs),
        refused_by_guard=len(pairs) - len(allowed),
        curve=tuple(curve),
    )


def _curve(allowed: Sequence[LabelledPair], asked: int, confidence: float) -> list[CurvePoint]:
    """Return one point per similarity that occurs, rounded down to 4 digits, in rising order."""
    # Rounded down, so that the threshold as printed still admits the pair it came from.
    levels = np.floor(np.array([pair.similarity for pair in allowed]) * 1e4) / 1e4
    wrong = np.array([not pair.same for pair in allowed], dtype=np.int64)
    order = np.argsort(levels, kind="stable")
    levels, wrong = levels[order], wrong[order]
    thresholds, starts = np.unique(levels, return_index=True)
    wrong_above = np.append(np.cumsum(wrong[::-1])[::-1], 0)[starts]
    points = []
    for threshold, start, failed in zip(thresholds, starts, wrong_above, strict=True):
        hits, bad = len(levels) - int(start), int(failed)
        points.append(
            CurvePoint(
                threshold=min(max(float(threshold), -1.0), 1.0),
                hits=hits,
                wrong=bad,
                hit_rate=hits / asked,
                false_hit_rate=bad / hits,
                upper_bound=wilson_upper(bad, hits, confidence),
            )
        )
    return points


def _draw(result: Calibration) -> str:
    low = min((point.threshold for point in result.curve), default=0.0)

    def x(threshold: float) -> float:
        return _MARGIN + (threshold - low) / max(1.0 - low, 1e-9) * (_PLOT_WIDTH - 2 * _MARGIN)

    def y(share: float) -> float:
        return _PLOT_HEIGHT - _MARGIN - share * (_PLOT_HEIGHT - 2 * _MARGIN)

    def line(values: Iterable[tuple[float, float]], colour: str) -> str:
        points = " ".join(f"{x(t):.1f},{y(v):.1f}" for t, v in values)
        return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'

    def text(at_x: float, at_y: float, words: str, anchor: str = "middle") -> str:
        return f'<text x="{at_x:.1f}" y="{at_y:.1f}" text-anchor="{anchor}">{words}</text>'

    shown = result._thinned(400)
    bottom, right = y(0.0), _PLOT_WIDTH - _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_PLOT_WIDTH}" height="{_PLOT_HEIGHT}" '
        f'viewBox="0 0 {_PLOT_WIDTH} {_PLOT_HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<path d="M{_MARGIN} {_MARGIN}V{bottom:.1f}H{right}" fill="none" stroke="black"/>',
        line(((p.threshold, p.hit_rate) for p in shown), "#1f77b4"),
        line(((p.threshold, p.false_hit_rate) for p in shown), "#d62728"),
        line(((p.threshold, p.upper_bound) for p in shown), "#ff9896"),
        line(((low, result.max_false_hit_rate), (1.0, result.max_false_hit_rate)), "#999999"),
    ]
    parts += [text(x(t), bottom + 18, f"{t:.2f}") for t in np.linspace(low, 1.0, 5).tolist()]
    parts += [text(_MARGIN - 6, y(v) + 4, f"{v:.0%}", "end") for v in (0.0, 0.25, 0.5, 0.75, 1.0)]
    if result.threshold is not None:
        parts.append(line(((result.threshold, 0.0), (result.threshold, 1.0)), "#2ca02c"))
        parts.append(text(x(result.threshold), _MARGIN - 8, f"{result.threshold:.4f}"))
    legend = "blue: hit rate; red: wrong hits; pale: their upper bound; grey: limit; green: chosen"
    parts += [text(_PLOT_WIDTH / 2, _PLOT_HEIGHT - 8, f"threshold ({legend})"), "</svg>"]
    return "\n".join(parts)
