"""The index of the cache in plain numpy: slow, obvious, and the model the tests compare with."""

import numpy as np


class ReferenceIndex:
    """Does what ``_core.EmbeddingIndex`` does, by comparing with every row."""

    def __init__(self, dim, /, *, row_dtype="f16"):
        self._dim = dim
        self._rows = {}
        self._contexts = {}
        self._free = []

    def __len__(self):
        return len(self._rows)

    def _check(self, vector):
        vector = np.asarray(vector)
        if vector.dtype != np.float32:
            raise TypeError(f"vector must be float32, got {vector.dtype}")
        if vector.shape != (self._dim,):
            raise ValueError(f"vector must have shape ({self._dim},), got {vector.shape}")
        if not np.isfinite(vector).all() or not vector.any():
            raise ValueError("vector must be finite and not zero")
        wide = vector.astype(np.float64)
        return wide / np.linalg.norm(wide)

    def add(self, vector, context, /):
        unit = self._check(vector)
        slot = self._free.pop() if self._free else len(self._rows)
        self._rows[slot] = unit.astype(np.float16).astype(np.float32)
        self._contexts[slot] = context
        return slot

    def remove(self, slot, /):
        del self._rows[slot]
        del self._contexts[slot]
        self._free.append(slot)

    def vector(self, slot, /):
        return self._rows[slot].copy()

    def search(self, query, context, threshold, k, /):
        unit = self._check(query)
        found = []
        for slot, row in list(self._rows.items()):
            if self._contexts.get(slot) == context:
                wide = row.astype(np.float64)
                score = float(unit @ wide / np.linalg.norm(wide))
                if score >= threshold:
                    found.append((-score, slot))
        found.sort()
        slots = np.array([slot for _, slot in found[:k]], np.int64)
        return slots, np.array([-score for score, _ in found[:k]], np.float64)

    def search_many(self, queries, contexts, threshold, k, /):
        slots = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), -np.inf)
        for i, (query, context) in enumerate(zip(queries, contexts, strict=True)):
            found, similarity = self.search(query, int(context), threshold, k)
            slots[i, : len(found)], scores[i, : len(found)] = found, similarity
        return slots, scores
