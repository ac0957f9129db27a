"""Collects tokenized texts of one call until there are enough for a CUDA device.

A device needs more tokens at once than one thread should tokenize while the device waits. So all
threads tokenize small pieces, which are joined in the order of the texts, and the thread that
completes a batch computes it while the others go on.
"""

from __future__ import annotations

import threading

from .tokenization import PackedTokens, join_tokens

#: Tokens in the first batch for a device; each following batch waits for twice as many.
_FIRST_TOKENS = 4096
#: A batch of this many tokens keeps a device busy for much longer than starting it takes.
_MOST_TOKENS = 16384


class TokenFeed:
    """Joins tokenized pieces into batches; safe to use from several threads.

    Parameters
    ----------
    texts : how many will be added in total
    """

    def __init__(self, texts: int) -> None:
        self._texts = texts
        self._enough = _FIRST_TOKENS
        self._lock = threading.Lock()
        self._early: dict[int, PackedTokens] = {}  # pieces before which one is missing
        self._ready: list[PackedTokens] = []
        self._tokens = 0  # of those that are ready
        self._first = self._next = 0  # the first text that is ready, and the one after the last

    def add(self, start: int, tokens: PackedTokens) -> tuple[int, PackedTokens] | None:
        """Add the texts from ``start`` on; return a batch to compute now, or None.

        A batch is its first text and the tokens of that and the following ones.
        """
        with self._lock:
            self._early[start] = tokens
            while (piece := self._early.pop(self._next, None)) is not None:
                self._ready.append(piece)
                self._tokens += len(piece.token_ids)
                self._next += len(piece.offsets) - 1
            is_last = self._next == self._texts
            if not self._ready or (self._tokens < self._enough and not is_last):
                return None
            self._enough = min(2 * self._enough, _MOST_TOKENS)
            self._tokens = 0
            pieces, self._ready = self._ready, []
            first, self._first = self._first, self._next
        return first, join_tokens(pieces)
