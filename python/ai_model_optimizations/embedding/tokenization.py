"""Texts to packed token ids, with the Hugging Face ``tokenizers`` library."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelFormatError, UnsupportedError
from .early_cut import cut_pattern
from .truncation import Cut

_SURROGATE = re.compile("[\ud800-\udfff]")

#: A text is cut early only when it has more characters per token that is kept than this.
_GENEROUS_CHARACTERS = 32


class PackedTokens(NamedTuple):
    """Token ids of several texts, one after another, without padding."""

    token_ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    #: The texts that were longer than the model reads.
    cuts: tuple[Cut, ...] = ()


class PackedTokenizer(NamedTuple):
    """A tokenizer that was checked before."""

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
        self._cut_pattern = cut_pattern(self._tokenizer)
        if any(sample.type_ids):
            raise UnsupportedError(f"{path}: token types other than 0 are not supported")

    def _check_vocabulary(self, vocabulary: int, sample: list[int]) -> None:
        # The post-processor has ids of its own, which every text shows.
        largest = max(_largest_id(self._tokenizer), *sample, 0)
        if largest >= vocabulary:
            raise ModelFormatError(
                f"{self._path}: token id {largest} lies beyond the model's vocab_size {vocabulary}"
            )

    def packed(self) -> PackedTokenizer:
        """Return what another TextTokenizer can be made of without checking it again."""
        return PackedTokenizer(self._tokenizer.to_str().encode())

    def share_vocabulary(self, other: Any) -> None:
        """Use the vocabulary of another ``tokenizers.Tokenizer`` of the same file; it is large."""
        self._tokenizer.model = other.model

    def pack(self, texts: Sequence[str], first: int = 0, prompt: str = "") -> PackedTokens:
        """Tokenize texts, each behind the prompt and cut at the model's limit.

        Errors and cuts count the texts from ``first``.

        Raises
        ------
        TypeError
            If an element is no string.
        ValueError
            If a text contains a lone surrogate, or gives no token at all.
        """
        cuts: list[Cut] = []
        rows = [self._token_ids(text, i, prompt, cuts) for i, text in enumerate(texts, first)]
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        np.cumsum(lengths, out=offsets[1:])
        flat = itertools.chain.from_iterable(rows)
        token_ids = np.fromiter(flat, dtype=np.int32, count=int(offsets[-1]))
        return PackedTokens(token_ids, offsets, tuple(cuts))

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

    def _token_ids(self, text: str, index: int, prompt: str, cuts: list[Cut]) -> list[int]:
        if not isinstance(text, str):
            raise TypeError(f"texts[{index}]: expected str, got {type(text).__name__}")
        encoding, is_whole = self._encode_beginning(prompt + text if prompt else text, index)
        ids: list[int] = encoding.ids
        if not ids:
            raise ValueError(f"texts[{index}]: the tokenizer gives no token for this text")
        if len(ids) > self._max_length:
            raise ModelFormatError(
                f"{self._path}: the tokenizer adds more special tokens than it says: "
                f"{len(ids)} tokens, the model reads {self._max_length}"
            )
        if len(ids) == self._max_length:
            dropped = sum(len(rest.ids) - self._special for rest in encoding.overflowing)
            if dropped or not is_whole:
                cuts.append(Cut(index, dropped, is_whole))
        return ids

    def _encode_beginning(self, text: str, index: int) -> tuple[Any, bool]:
        """Encode no more of a long text than is kept; False when something was left out.

        The tokens of a beginning that ends where :mod:`early_cut` allows are the first tokens of
        the whole; when they fill the model's limit, the rest is not needed.
        """
        length = self._max_length * _GENEROUS_CHARACTERS
        while self._cut_pattern is not None and length < len(text):
            place = self._cut_pattern.search(text, length)
            if place is None:
                break
            encoding = self._encode(text[: place.start()], index)
            if len(encoding.ids) == self._max_length:
                return encoding, False
            length = place.start() * 4
        return self._encode(text, index), True

    def _encode(self, text: str, index: int | None) -> Any:
        what = "prompt" if index is None else f"texts[{index}]"
        try:
            return self._tokenizer.encode(text)
        except (TypeError, UnicodeEncodeError):
            surrogate = _SURROGATE.search(text)
            if surrogate is None:
                raise
            raise ValueError(
                f"{what}: lone surrogate {surrogate.group()!a} "
                f"at position {surrogate.start()} is no valid text"
            ) from None
        except Exception as error:  # the library raises a bare one
            raise ModelFormatError(
                f"{self._path}: the tokenizer failed on {what}: {error}"
            ) from error


def _largest_id(tokenizer: Any) -> int:
    """Return the largest token id."""
    if type(tokenizer.model).__name__ != "Unigram":
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
