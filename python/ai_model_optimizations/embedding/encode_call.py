"""One call of ``EmbeddingModel.encode``: texts through tokenizer and core, on several threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..device_array import DeviceArray
from ..devices import CPU
from .batch_threads import for_each_batch
from .progress import with_progress_bar
from .token_feed import TokenFeed
from .tokenization import PackedTokens, TextTokenizer
from .truncation import OnTruncate, TruncationLog

#: Texts that one thread tokenizes for a CUDA device at a time; more would keep it waiting for the
#: first ones.
DEVICE_TEXTS = 32


class EncodeCall(NamedTuple):
    """What a call works with, and its arguments, checked."""

    encoder: _core.Encoder
    tokenizer: TextTokenizer
    truncation: TruncationLog
    device: int
    normalize: bool
    prompt: str
    #: Whether the prompt's tokens count in pooling.
    include_prompt: bool
    #: Elements of a vector.
    dimension: int
    on_truncate: OnTruncate
    keep_on_device: bool

    def one(self, text: str) -> NDArray[np.float32] | DeviceArray:
        """Return the vector of a text; (dimension,)."""
        tokens = self._tokenize([text], 0)
        if self.keep_on_device:
            out = DeviceArray((self.dimension,), "float32", self.device)
            self._compute(out, 0, tokens)
            return out
        vector: NDArray[np.float32] = self.encoder.encode(*self._core_arguments(tokens))[0]
        return vector

    def many(
        self, texts: Sequence[str], batch_size: int, show_progress_bar: bool | None
    ) -> NDArray[np.float32] | DeviceArray:
        """Return the vectors of texts; (n, dimension)."""
        shape = len(texts), self.dimension
        out: NDArray[np.float32] | DeviceArray
        if self.keep_on_device:
            out = DeviceArray(shape, "float32", self.device)
        else:
            out = np.empty(shape, np.float32)
        on_cpu = self.device == CPU
        step = batch_size if on_cpu else min(batch_size, DEVICE_TEXTS)
        feed = None if on_cpu else TokenFeed(len(texts))

        def encode_from(start: int) -> None:
            tokens = self._tokenize(texts[start : start + step], start)
            batch = (start, tokens) if feed is None else feed.add(start, tokens)
            if batch is not None:
                self._compute(out, *batch)

        starts = range(0, len(texts), step)
        threads = min(_core.thread_count(), len(starts))
        for_each_batch(with_progress_bar(starts, show_progress_bar), encode_from, threads)
        return out

    def _tokenize(self, texts: Sequence[str], first: int) -> PackedTokens:
        tokens = self.tokenizer.pack(texts, first, self.prompt)
        self.truncation.record(len(texts), tokens.cuts, self.on_truncate)
        return tokens

    def _compute(
        self, out: NDArray[np.float32] | DeviceArray, first: int, tokens: PackedTokens
    ) -> None:
        """Write the vectors of the texts from the ``first`` on."""
        arguments = self._core_arguments(tokens)
        if isinstance(out, DeviceArray):
            self.encoder.encode_to(*arguments, out.memory, first)
        else:
            out[first : first + len(tokens.offsets) - 1] = self.encoder.encode(*arguments)

    def _core_arguments(
        self, tokens: PackedTokens
    ) -> tuple[NDArray[np.int32], NDArray[np.int64], bool, int, int]:
        skip = 0 if self.include_prompt else self.tokenizer.prompt_length(self.prompt)
        return tokens.token_ids, tokens.offsets, self.normalize, skip, self.dimension
