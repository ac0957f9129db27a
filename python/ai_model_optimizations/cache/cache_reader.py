"""Looking up in a cache: by vector, by text, and many at once."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .cache_arguments import checked_threshold
from .cache_base import CacheBase
from .contexts import Context, ContextKey, context_key
from .results import CacheHit
from .vectors import FLOAT32, EmbeddingLike


class CacheReader(CacheBase):
    """Lookups; see `SmartCache`."""

    def get_semantic_similar(
        self,
        query_embedding: EmbeddingLike,
        threshold: float | None = None,
        context: Context = "",
        query: str | None = None,
    ) -> CacheHit | None:
        """Return the best entry at or above the threshold, or None.

        Parameters
        ----------
        query_embedding : (dim,) numbers: list, tuple, numpy array or torch tensor, normalised or
            not. A contiguous float32 array costs no copy.
        threshold : cosine similarity in [-1, 1]; None takes the cache's
        context : only entries stored with this context are considered
        query : the question's text. If given, an entry with the same text is preferred, and guards
            compare the question with the entry's; if not, the hit has ``guarded=False``

        Raises
        ------
        TypeError, ValueError
            If the embedding is not `dim` finite numbers, is zero, or the threshold or context is
            not valid.
        SpaceMismatchError
            If the embedding carries the ``space_id`` of another model.
        """
        start = time.perf_counter_ns()
        if (
            type(query_embedding) is np.ndarray
            and query_embedding.dtype is FLOAT32
            and query_embedding.ndim == 1
        ):
            vector = query_embedding
        else:
            vector = self._vector(query_embedding)
        key = context if type(context) is str else context_key(context)
        if not key and self._require_context:
            self._key(context)
        limit = self._threshold if threshold is None else checked_threshold(threshold)
        if query is not None:
            found = self._get(query, key, limit, start, vector)
        elif self._disabled:
            found = self._finder.miss(start, key)
        else:
            found = self._finder.search(vector, key, limit, None, start)
        return None if self._shadow else found

    def get(
        self, text: str, threshold: float | None = None, context: Context = ""
    ) -> CacheHit | None:
        """Look up a question by its text: first an equal text, then by meaning.

        Without an embedder only equal texts are found. A blank text always misses.

        Raises
        ------
        TypeError, ValueError
            If the text is not a string, or the threshold or context is not valid.
        """
        start = time.perf_counter_ns()
        key = self._key(context)
        found = self._get(text, key, self._limit(threshold), start, None)
        return None if self._shadow else found

    def get_many(
        self,
        queries: Sequence[str] | EmbeddingLike,
        threshold: float | None = None,
        context: Context = "",
        *,
        texts: Sequence[str | None] | None = None,
    ) -> list[CacheHit | None]:
        """Look up several questions of one context in one pass over the index.

        Parameters
        ----------
        queries : texts (needs an embedder), or (n, dim) embeddings
        texts : the texts of the embeddings, None where unknown
        threshold, context : as in `get_semantic_similar`

        Returns
        -------
        One hit or None per query, in their order.

        Raises
        ------
        TypeError, ValueError, SpaceMismatchError
            As `get_semantic_similar`; ValueError also if `texts` has another length.
        """
        start = time.perf_counter_ns()
        key = self._key(context)
        limit = self._limit(threshold)
        vectors: NDArray[np.float32] | None = None
        known: list[str | None]
        if isinstance(queries, (list, tuple)) and queries and isinstance(queries[0], str):
            known = [self._text(text) for text in queries]
        else:
            vectors = self._matrix(queries)
            known = [None] * len(vectors) if texts is None else list(texts)
            if len(known) != len(vectors):
                raise ValueError(f"{len(vectors)} embeddings came with {len(known)} texts")
        found = self._get_many(known, vectors, key, limit, start)
        return [None] * len(found) if self._shadow else found

    def _get_many(
        self,
        texts: Sequence[str | None],
        vectors: NDArray[np.float32] | None,
        key: ContextKey,
        limit: float,
        start: int,
    ) -> list[CacheHit | None]:
        if self._disabled:
            return [self._finder.miss(start, key) for _ in texts]
        found: list[CacheHit | None] = [None] * len(texts)
        unanswered: list[int] = []
        for i, text in enumerate(texts):
            text_key = None if text is None else self._normalize(text)
            if text_key is not None:
                found[i] = self._finder.find_text(text_key, text, key, start)
            if found[i] is None and text_key == "":
                self._finder.miss(start, key)
            elif found[i] is None:
                unanswered.append(i)
        asked = [texts[i] for i in unanswered]
        if not asked:
            return found
        rows = (
            self._embed([text or "" for text in asked]) if vectors is None else vectors[unanswered]
        )
        answers = (
            [self._finder.miss(start, key) for _ in asked]
            if rows is None
            else self._finder.search_many(rows, key, limit, asked, start)
        )
        for i, answer in zip(unanswered, answers, strict=True):
            found[i] = answer
        return found

    def _get(
        self,
        text: str,
        key: ContextKey,
        limit: float,
        start: int,
        vector: NDArray[np.float32] | None,
    ) -> CacheHit | None:
        text_key = self._normalize(self._text(text))
        if vector is not None:
            self._check_dimension(vector.shape[-1])
        if self._disabled or not text_key:
            return self._finder.miss(start, key)
        found = self._finder.find_text(text_key, text, key, start)
        if found is not None:
            return found
        if vector is None:
            rows = self._embed([text])
            if rows is None:
                return self._finder.miss(start, key)
            vector = rows[0]
        return self._finder.search(vector, key, limit, text, start)
