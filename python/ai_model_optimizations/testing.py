"""Stand-ins for a model, for the tests of code that uses this package."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray


class FakeEmbedder:
    """Looks like an EmbeddingModel, needs no files, and fails on demand.

    A text's vector depends on the text alone, has unit length, and is the same in every process.

    Parameters
    ----------
    dimension : length of the vectors
    delay : seconds that each call of :meth:`encode` takes
    delay_per_text : seconds that each text adds
    fail_on : texts for which encode raises `error`; all texts of that call fail with it, as with a
        real model
    nan_on : texts that get a vector of NaN
    error : makes the exception for `fail_on`; the message never holds the text
    space_id : what :attr:`space_id` says

    Attributes
    ----------
    batches : the texts of each call, in order
    gate : a threading.Event that every call waits for; clear it to make the model hang
    """

    def __init__(
        self,
        dimension: int = 8,
        *,
        delay: float = 0.0,
        delay_per_text: float = 0.0,
        fail_on: Collection[str] = (),
        nan_on: Collection[str] = (),
        error: Callable[[], BaseException] = lambda: RuntimeError("told to fail"),
        space_id: str = "fake",
        max_seq_length: int = 256,
    ) -> None:
        self.dimension = dimension
        self.delay = delay
        self.delay_per_text = delay_per_text
        self.fail_on = set(fail_on)
        self.nan_on = set(nan_on)
        self.error = error
        self.space_id = space_id
        self.max_seq_length = max_seq_length
        self.dtype = "f32"
        self.memory_bytes = 0
        self.batches: list[list[str]] = []
        self.gate = threading.Event()
        self.gate.set()

    def encode(self, texts: str | Sequence[str], batch_size: int = 32) -> NDArray[np.float32]:
        """Return the texts' vectors, (n, dimension) float32, or (dimension,) for one string."""
        many = [texts] if isinstance(texts, str) else list(texts)
        self.batches.append(many)
        self.gate.wait()
        seconds = self.delay + self.delay_per_text * len(many)
        if seconds:
            time.sleep(seconds)
        if not self.fail_on.isdisjoint(many):
            raise self.error()
        vectors = np.empty((len(many), self.dimension), dtype=np.float32)
        for row, text in zip(vectors, many, strict=True):
            row[:] = np.nan if text in self.nan_on else self.vector(text)
        return vectors[0] if isinstance(texts, str) else vectors

    def vector(self, text: str) -> NDArray[np.float32]:
        """Return the vector of one text without a call of :meth:`encode`."""
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        numbers = np.random.default_rng(int.from_bytes(digest, "little"))
        vector = numbers.standard_normal(self.dimension)
        vector /= np.linalg.norm(vector)
        return vector.astype(np.float32)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the words of each text plus two, at most `max_seq_length`."""
        return [min(len(text.split()) + 2, self.max_seq_length) for text in texts]
