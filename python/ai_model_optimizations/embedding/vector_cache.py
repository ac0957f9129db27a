"""A cache of vectors by exact text, bounded in bytes; the least recently used leave first.

The key is the text itself, never similarity: only the same text gets the same vector.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# The dictionary's entry, the string's header and the array object around the numbers, on 64 bits.
_ENTRY_OVERHEAD = 250
_LARGEST_SHARE = 8  # a text whose entry takes more than one part in eight is not kept


class VectorCache:
    """A bounded map from text to vector; safe to use from several threads.

    Parameters
    ----------
    max_bytes : budget for texts and vectors together; 0 keeps nothing
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._lock = threading.Lock()
        self._rows: OrderedDict[str, NDArray[np.float32]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    def get_many(self, texts: Sequence[str]) -> list[NDArray[np.float32] | None]:
        """Return each text's vector (shared: copy before changing it) or None."""
        if not self.max_bytes:
            return [None] * len(texts)
        rows = self._rows
        with self._lock:
            found = [rows.get(text) for text in texts]
            hits = 0
            for text, row in zip(texts, found, strict=True):
                if row is not None:
                    rows.move_to_end(text)
                    hits += 1
            self.hits += hits
            self.misses += len(found) - hits
        return found

    def put_many(self, texts: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Keep the rows of `vectors`, (len(texts), dim); each is copied."""
        if not self.max_bytes:
            return
        with self._lock:
            for text, vector in zip(texts, vectors, strict=True):
                if text in self._rows:
                    continue
                size = _entry_bytes(text, vector)
                if size * _LARGEST_SHARE > self.max_bytes:
                    continue
                self._rows[text] = vector.copy()
                self.bytes += size
            while self.bytes > self.max_bytes:
                self.bytes -= _entry_bytes(*self._rows.popitem(last=False))

    def clear(self) -> None:
        """Forget every vector; the counts stay."""
        with self._lock:
            self._rows.clear()
            self.bytes = 0


def _entry_bytes(text: str, vector: NDArray[np.float32]) -> int:
    # Not sys.getsizeof: a string grows when its UTF-8 form is requested.
    return len(text) * (1 if text.isascii() else 4) + vector.nbytes + _ENTRY_OVERHEAD
