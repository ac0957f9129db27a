"""Answers from static content: by keyword, then by meaning, else the default template.

The content and its embeddings form one immutable state, which is replaced as a whole: a request
sees the old content or the new, never a mixture, and does not wait while the new one is embedded.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .. import _core
from .answers import AnswerCaches, Found
from .embedder import SharedEmbedder
from .serial_executor import SerialExecutor
from .static_content import StaticContent, file_stamp, read_content

logger = logging.getLogger("ai_model_optimizations")

_CHECK_SECONDS: Final = 0.5
_RETRY_SECONDS: Final = 30.0
# Below the lower similarity no category answers; from the upper one on it does in any language.
_LOWEST, _HIGHEST = 0.45, 0.75
_ROWS_AT_ONCE: Final = 1024


@dataclass(frozen=True)
class MeaningIndex:
    """The vectors of the categories' texts, and the similarity each category requires."""

    index: _core.EmbeddingIndex
    categories: NDArray[np.int64]  # of each text
    thresholds: NDArray[np.float32]  # of each category

    def find(self, vector: NDArray[np.float32]) -> int | None:
        """Return the index of the matching category; None if the nearest is not near enough."""
        found = self.index.find(vector, 0, float(self.thresholds.min()), 1)
        if not found:
            return None
        slot, similarity = found[0]
        category = int(self.categories[slot])
        return category if similarity >= self.thresholds[category] else None


def build_index(content: StaticContent, embedder: SharedEmbedder) -> MeaningIndex | None:
    """Embed the texts of all categories in one batch; None if there are none."""
    texts, listed = [], []
    for number, entry in enumerate(content.entries):
        for text in entry.texts:
            texts.append(text)
            listed.append(number)
    if not texts:
        return None
    vectors = embedder.processor.process_batch_sync(texts)
    categories = np.array(listed)
    index = _core.EmbeddingIndex(vectors.shape[1])
    for vector in vectors:
        index.add(np.ascontiguousarray(vector), 0)
    if content.threshold is None:
        thresholds = calibrated_thresholds(vectors, categories, len(content.entries))
    else:
        thresholds = np.full(len(content.entries), content.threshold, np.float32)
    return MeaningIndex(index, categories, thresholds)


def calibrated_thresholds(
    vectors: NDArray[np.float32], categories: NDArray[np.int64], count: int
) -> NDArray[np.float32]:
    """Return how similar a message must be to each category: more than other categories' texts are.

    Unrelated messages are about as similar to a category as the texts of other categories. In a
    language that the model hardly knows, all texts are similar to each other and similarity says
    little, while categories in another language may still answer at far lower similarities.

    Parameters
    ----------
    vectors : (n, dim), of the categories' texts
    categories : (n,), the category of each text, below `count`

    Returns
    -------
    (count,) cosines
    """
    rows = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    nearest = np.full(count, -1.0, np.float32)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        cosines = rows[part] @ rows.T
        cosines[categories[part, None] == categories[None, :]] = -1.0
        np.maximum.at(nearest, categories[part], cosines.max(axis=1))
    return np.clip(nearest, _LOWEST, _HIGHEST)


@dataclass(frozen=True)
class _State:
    content: StaticContent
    index: Future[MeaningIndex | None] | None  # None before the first question needs it
    retry_at: float = 0.0

    @property
    def is_ready(self) -> bool:
        """Whether the index is ready to be searched."""
        return self.index is not None and self.index.done() and not self.index.exception()


class ContentMatcher:
    """The plain content manager for a content file; follows changes to the file.

    Parameters
    ----------
    path : the file
    embedder : of messages and category texts
    caches : cleared when the content changes

    Raises
    ------
    OSError, ContentFileError
        As `read_content`.
    """

    shares_by_meaning = False  # the lookup by meaning is in the content itself
    executor: SerialExecutor | None = None  # none needed: it answers in microseconds

    def __init__(self, path: Path, embedder: SharedEmbedder, caches: AnswerCaches) -> None:
        self.path = path
        self._embedder = embedder
        self.caches = caches
        self._executor = SerialExecutor("aimo-content-reload")
        self._lock = threading.Lock()
        self._state = _State(read_content(path), None)
        self._checked = time.monotonic()
        self._refused: tuple[int, ...] | None = None  # the stamp of a file that was rejected
        self._again_at = math.inf  # when to try that file again
        self.reloads = 0
        self.reload_errors = 0

    @property
    def content(self) -> StaticContent:
        """The current content."""
        return self._state.content

    # ---- answering ----

    def check(self, message: object) -> None:
        """Raise TypeError for anything but a string."""
        if not isinstance(message, str):
            raise TypeError(f"user_message: expected str, got {type(message).__name__}")

    def quick(self, message: str) -> Found | None:
        """Return an answer that needs no vector: to a blank message, or by keyword."""
        content = self._state.content
        if not message.strip():
            return Found(content.default_answer(message), "default", "no")
        name = content.keywords.match(message)
        if name is None:
            return None
        entry = next(entry for entry in content.entries if entry.name == name)
        return Found(entry.message, "keyword", "exact")

    def answer(self, message: str, vector: NDArray[np.float32] | None) -> Found:
        """Return the answer by meaning, or the default, which without a vector is not cached."""
        state = self._state
        content = state.content
        if vector is None or not state.is_ready:
            return Found(content.default_answer(message), "default", "no")
        assert state.index is not None
        index = state.index.result()
        number = None if index is None else index.find(vector)
        if number is None:
            return Found(content.default_answer(message), "default", "exact")
        return Found(content.entries[number].message, "semantic", "exact")

    def prepare(self) -> Future[MeaningIndex | None]:
        """Return the future of the category texts' vectors, computed once per content."""
        with self._lock:
            state = self._state
            failed = state.index is not None and state.index.done() and state.index.exception()
            if state.index is None or (failed and time.monotonic() >= state.retry_at):
                content = state.content
                future = self._executor.submit(lambda: build_index(content, self._embedder))
                self._state = _State(content, future, time.monotonic() + _RETRY_SECONDS)
                return future
            return state.index

    # ---- following the file ----

    def refresh(self) -> None:
        """Check from time to time whether the file has changed; the executor reads it."""
        now = time.monotonic()
        if now - self._checked < _CHECK_SECONDS:
            return
        self._checked = now
        try:
            stamp = file_stamp(self.path)
        except OSError:
            stamp = (0,)
        if stamp == self._state.content.stamp:
            return
        if stamp != self._refused or now >= self._again_at:
            self._refused, self._again_at = stamp, math.inf  # so that it is read once
            self._executor.submit(self._reload_quietly)

    def reload(self) -> StaticContent:
        """Read the file now; later questions are answered from it.

        Raises
        ------
        OSError, ContentFileError
            As `read_content`; the old content stays.
        """
        content = read_content(self.path)
        with self._lock:
            needed = self._state.index is not None
            self._state = _State(content, None)
            self._refused = None
            self.reloads += 1
        self.caches.clear()
        if needed:
            self.prepare()
        return content

    def _reload_quietly(self) -> None:
        """Read and embed the file, then switch to the new content; runs in the executor."""
        try:
            content = read_content(self.path)
        except Exception as error:
            self._keep_old(error)
            return
        index: Future[MeaningIndex | None] | None = None
        if self._state.index is not None:
            index = Future()
            try:
                index.set_result(build_index(content, self._embedder))
            except Exception as error:
                if self._state.is_ready:
                    # The model's failure may be temporary, and the file itself is good.
                    self._again_at = time.monotonic() + _RETRY_SECONDS
                    self._keep_old(error)
                    return
                index.set_exception(error)
        with self._lock:
            self._state = _State(content, index, time.monotonic() + _RETRY_SECONDS)
            self._refused = None
            self.reloads += 1
        self.caches.clear()

    def _keep_old(self, error: Exception) -> None:
        self.reload_errors += 1
        logger.warning("the changed content is not used, the old one answers: %s", error)


def content_key(path: Path) -> str:
    """Return the same key for a content file, however its path is written."""
    return os.path.realpath(path)
