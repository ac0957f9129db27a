"""Estimates how many tokens a text has, in a microsecond.

Counting exactly would mean tokenizing twice, a good part of the work on a fast engine. The token
budget of a batch bounds memory and time and needs no exact count, so a guess is made from a text's
characters, words and punctuation, and corrected by the model's own counts of a sample of batches.
"""

from __future__ import annotations

import logging
import string
from collections.abc import Callable, Sequence
from typing import Final

logger = logging.getLogger("ai_model_optimizations")

# Least squares of the relative error over 4,000 docstrings and bank customers' questions with
# BERT's vocabulary: half of the guesses are within 7%, nine in ten within 18%.
_BASE: Final = 3.0  # [CLS], [SEP], and the first word
_PER_CHARACTER: Final = 0.12
_PER_SPACE: Final = 0.39
_PER_PUNCTUATION: Final = 1.06
_OTHER_PER_CHARACTER: Final = 0.4  # other scripts and accented text
_CHARACTERS_READ: Final = 2000  # the rest of a longer text is assumed to be similar
_PUNCTUATION: Final = string.punctuation.encode()

_EAGER_SAMPLES: Final = 8
_SAMPLE_EVERY: Final = 64
_LEAST_WEIGHT: Final = 1 / 16  # of a new sample in the running average


class TokenEstimator:
    """Estimates token counts, and learns from a model's own counts when it offers them."""

    def __init__(self) -> None:
        self._scales = [1.0, 1.0]  # counted over guessed, indexed by text.isascii()
        self._samples = [0, 0]
        self._limit: int | None = None
        self._counter: Callable[[list[str]], Sequence[int]] | None = None
        self._batches = 0

    def bind(self, counter: Callable[[list[str]], Sequence[int]] | None, limit: int | None) -> None:
        """Use a loaded model's counter and its limit of tokens per text."""
        self._counter = counter
        self._limit = limit

    def estimate(self, text: str) -> int:
        """Return the estimated number of tokens, special tokens included, up to the limit."""
        tokens = int(guess_tokens(text) * self._scales[text.isascii()])
        return tokens if self._limit is None or tokens < self._limit else self._limit

    def correct(self, guess: float, is_ascii: bool) -> int:
        """Turn a guess into this model's tokens, without a limit."""
        return int(guess * self._scales[is_ascii])

    def learn(self, texts: list[str]) -> None:
        """Compare with the model's counts, for the first batches and then for one in 64."""
        self._batches += 1
        if self._counter is None:
            return
        if self._batches > _EAGER_SAMPLES and self._batches % _SAMPLE_EVERY:
            return
        for is_ascii in (False, True):
            sample = [text for text in texts if text.isascii() is is_ascii and self._is_whole(text)]
            if not sample:
                continue
            try:
                counted = float(sum(self._counter(sample)))
            except Exception as error:
                logger.warning("count_tokens failed (%s); estimating", type(error).__name__)
                self._counter = None
                return
            self._samples[is_ascii] += 1
            weight = max(1 / self._samples[is_ascii], _LEAST_WEIGHT)
            scale = counted / sum(map(guess_tokens, sample))
            self._scales[is_ascii] += weight * (scale - self._scales[is_ascii])

    def _is_whole(self, text: str) -> bool:
        """Whether the model surely reads the whole text; a cut text would bias the scale."""
        return self._limit is None or self.estimate(text) < self._limit // 2


def guess_tokens(text: str) -> float:
    """Return a guess that no model has corrected."""
    length = len(text)
    if length > _CHARACTERS_READ:
        return guess_tokens(text[:_CHARACTERS_READ]) * (length / _CHARACTERS_READ)
    if not text.isascii():
        return _BASE + _OTHER_PER_CHARACTER * length
    punctuation = length - len(text.encode().translate(None, _PUNCTUATION))
    return (
        _BASE
        + _PER_CHARACTER * length
        + _PER_SPACE * text.count(" ")
        + _PER_PUNCTUATION * punctuation
    )
