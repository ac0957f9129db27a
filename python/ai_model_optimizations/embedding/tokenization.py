"""Converts texts to packed token ids, with the Hugging Face ``tokenizers`` library."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelFormatError, UnsupportedError
from .early_cut import cut_pattern
from .truncation import Cut

_SURROGATE = re.compile("[\ud800-\udfff]")

#: A text is cut early only if it has more characters than this per token that is kept.
_GENEROUS_CHARACTERS = 32

#: Texts in one call of the library: it keeps kilobytes for each, and while the call's results
#: become an array, other threads wait for the interpreter.
_TEXTS_PER_CALL = 64

#: Turns the library's own threads on or off. Texts are split among our threads, one call on each:
#: the library's would be in addition to them, do not exist in a forked child, and ignore
#: AIMO_NUM_THREADS.
_LIBRARY_THREADS = "TOKENIZERS_PARALLELISM"
_OFF = ("", "0", "f", "false", "n", "no", "off")


class PackedTokens(NamedTuple):
    """Token ids of several texts, one after another, without padding."""

    token_ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    #: The texts that were longer than the model reads.
    cuts: tuple[Cut, ...] = ()


class PackedTokenizer(NamedTuple):
    """A tokenizer that has already been checked."""

    #: A tokenizer.json.
    content: bytes


class TextTokenizer:
    """The model's own tokenizer, with the model's limit instead of the file's.

    Safe to call from several threads: nothing is set after construction.

    Raises
    ------
    ModelFormatError
        If tokenizer.json is damaged or needs a larger vocabulary than the model has.
    UnsupportedError
        If it gives plain texts token types other than 0.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_length: int,
        vocabulary: int,
        do_lower_case: bool = False,
        packed: PackedTokenizer | None = None,
    ) -> None:
        from tokenizers import Tokenizer

        self._path = path
        os.environ.setdefault(_LIBRARY_THREADS, "false")
        try:
            content = path.read_bytes() if packed is None else packed.content
            self._tokenizer = Tokenizer.from_buffer(content)
            self._tokenizer.no_padding()
            self._special = self._tokenizer.num_special_tokens_to_add(False)
            if max_length > self._special:
                self._tokenizer.enable_truncation(max_length)
            if do_lower_case:
                _lower_first(self._tokenizer)
            sample = self._tokenizer.encode("a")
        except BaseException as error:  # the library raises a bare Exception, or panics
            if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
                raise
            raise ModelFormatError(f"{path}: not a valid tokenizer file: {error}") from error
        if packed is None:
            self._check_vocabulary(vocabulary, sample.ids)
        if max_length <= self._special:
            raise ModelFormatError(
                f"{path}: {self._special} special tokens leave no place in {max_length} tokens"
            )
        self._max_length = max_length
        # The faster method of newer versions does not compute offsets.
        self._library_encode: Callable[[list[str]], list[Any]] = getattr(
            self._tokenizer, "encode_batch_fast", self._tokenizer.encode_batch
        )
        self._cut_pattern = cut_pattern(self._tokenizer)
        if any(sample.type_ids):
            raise UnsupportedError(f"{path}: token types other than 0 are not supported")

    def _check_vocabulary(self, vocabulary: int, sample: list[int]) -> None:
        # The post-processor adds ids of its own, which appear in every text.
        largest = max(_largest_id(self._tokenizer, vocabulary), *sample, 0)
        if largest >= vocabulary:
            raise ModelFormatError(
                f"{self._path}: token id {largest} lies beyond the model's vocab_size {vocabulary}"
            )

    def packed(self) -> PackedTokenizer:
        """Return a form from which another TextTokenizer can be made without checking it again."""
        return PackedTokenizer(self._tokenizer.to_str().encode())

    def share_vocabulary(self, other: Any) -> None:
        """Use the vocabulary of another ``tokenizers.Tokenizer`` of the same file; it is large."""
        self._tokenizer.model = other.model

    def pack(self, texts: Sequence[str], first: int = 0, prompt: str = "") -> PackedTokens:
        """Tokenize texts, each preceded by the prompt and cut at the model's limit.

        Errors and cuts count the texts from ``first``.

        Raises
        ------
        TypeError
            If an element is not a string.
        ValueError
            If a text contains a lone surrogate, or gives no token at all.
        """
        starts = range(0, max(len(texts), 1), _texts_per_call)
        return join_tokens(
            [self._pack(texts[i : i + _texts_per_call], first + i, prompt) for i in starts]
        )

    def prompt_length(self, prompt: str) -> int:
        """Return how many tokens of a text belong to the prompt before it, as far as one can tell.

        As in sentence-transformers: the tokens of the prompt alone, but for a special one at the
        end.
        """
        if not prompt:
            return 0
        encoding = self._encode(prompt, None)
        last_is_special = bool(encoding.special_tokens_mask[-1:] == [1])
        return len(encoding.ids) - last_is_special

    def _pack(self, texts: Sequence[str], first: int, prompt: str) -> PackedTokens:
        for index, text in enumerate(texts, first):
            if not isinstance(text, str):
                raise TypeError(f"texts[{index}]: expected str, got {type(text).__name__}")
        whole = [prompt + text for text in texts] if prompt else list(texts)
        read = [self._beginning(text, self._max_length * _GENEROUS_CHARACTERS) for text in whole]
        encodings = self._encode_all(read, first)
        rows: list[list[int]] = [encoding.ids for encoding in encodings]
        cuts: list[Cut] = []
        for i, row in enumerate(rows):
            if not 0 < len(row) < self._max_length or read[i] is not whole[i]:
                rows[i] = self._finish(encodings[i], read[i], whole[i], first + i, cuts)
        ends = itertools.accumulate(map(len, rows), initial=0)
        offsets = np.fromiter(ends, dtype=np.int64, count=len(rows) + 1)
        flat = itertools.chain.from_iterable(rows)
        token_ids = np.fromiter(flat, dtype=np.int32, count=int(offsets[-1]))
        return PackedTokens(token_ids, offsets, tuple(cuts))

    def _beginning(self, text: str, length: int) -> str:
        """Return the first characters of a text that is longer, at least ``length`` of them.

        The tokens of a prefix that ends where :mod:`early_cut` allows are the first tokens of the
        whole text; if they fill the model's limit, the rest is not needed. If there is no such
        place, the text itself is returned.
        """
        if len(text) <= length or self._cut_pattern is None:
            return text
        place = self._cut_pattern.search(text, length)
        return text if place is None else text[: place.start()]

    def _finish(
        self, encoding: Any, read: str, whole: str, index: int, cuts: list[Cut]
    ) -> list[int]:
        """Read on until the model's limit is reached; check the tokens and record cuts."""
        while read is not whole and len(encoding) < self._max_length:
            read = self._beginning(whole, 4 * len(read))
            encoding = self._encode(read, index)
        ids: list[int] = encoding.ids
        if not ids:
            raise ValueError(f"texts[{index}]: the tokenizer gives no token for this text")
        if len(ids) > self._max_length:
            raise ModelFormatError(
                f"{self._path}: the tokenizer adds more special tokens than it says: "
                f"{len(ids)} tokens, the model reads {self._max_length}"
            )
        if len(ids) == self._max_length:
            dropped = sum(len(rest) - self._special for rest in encoding.overflowing)
            if dropped or read is not whole:
                cuts.append(Cut(index, dropped, read is whole))
        return ids

    def _encode_all(self, texts: list[str], first: int) -> list[Any]:
        """Encode without the GIL; errors name the text."""
        try:
            return self._library_encode(texts)
        except Exception:  # one of them: which?
            return [self._encode(text, index) for index, text in enumerate(texts, first)]

    def _encode(self, text: str, index: int | None) -> Any:
        what = "prompt" if index is None else f"texts[{index}]"
        try:
            return self._library_encode([text])[0]
        except (TypeError, UnicodeEncodeError):
            surrogate = _SURROGATE.search(text)
            if surrogate is None:
                raise
            raise ValueError(
                f"{what}: lone surrogate {surrogate.group()!a} "
                f"at position {surrogate.start()} is no valid text"
            ) from None
        except Exception as error:  # the library raises a bare Exception
            raise ModelFormatError(
                f"{self._path}: the tokenizer failed on {what}: {error}"
            ) from error


def join_tokens(parts: Sequence[PackedTokens]) -> PackedTokens:
    """Return the texts of all parts, one after another."""
    if len(parts) == 1:
        return parts[0]
    ends = np.cumsum([0, *(len(part.token_ids) for part in parts)])
    offsets = [part.offsets[1:] + end for part, end in zip(parts, ends[:-1], strict=True)]
    return PackedTokens(
        np.concatenate([part.token_ids for part in parts]),
        np.concatenate([ends[:1], *offsets]),
        tuple(cut for part in parts for cut in part.cuts),
    )


_texts_per_call = _TEXTS_PER_CALL


def _avoid_lost_threads() -> None:
    # A call with one text never waits for the library's threads.
    global _texts_per_call
    if os.environ.get(_LIBRARY_THREADS, "").lower() not in _OFF:
        _texts_per_call = 1


os.register_at_fork(after_in_child=_avoid_lost_threads)


def _largest_id(tokenizer: Any, limit: int) -> int:
    """Return the largest token id; if it is below the limit, possibly another id below it."""
    if type(tokenizer.model).__name__ != "Unigram":
        # Word by word, so that the heap stays as it was: a dictionary of all words leaves a
        # megabyte behind. When some share an id, the counts differ.
        words = int(tokenizer.get_vocab_size(True))
        below = sum(tokenizer.id_to_token(i) is not None for i in range(min(limit, words)))
        if below == words:
            return limit - 1
        return max(tokenizer.get_vocab().values(), default=0)
    # Its ids are places in a list; a dictionary of a quarter of a million words would take longer
    # than reading the file.
    added = max(tokenizer.get_added_tokens_decoder(), default=0)
    return max(int(added), int(tokenizer.get_vocab_size(False)) - 1)


def _lower_first(tokenizer: Any) -> None:
    """Put lower-casing before the normalizer, unless it is a part of it."""
    from tokenizers.normalizers import Lowercase, Sequence

    normalizer = tokenizer.normalizer
    if normalizer is None:
        tokenizer.normalizer = Lowercase()
        return
    state = json.loads(normalizer.__getstate__())
    steps = state.get("normalizers") or [state]
    if not any(step.get("type") == "Lowercase" for step in steps):
        tokenizer.normalizer = Sequence([Lowercase(), normalizer])
