"""Texts to packed token ids, with the Hugging Face ``tokenizers`` library."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelFormatError

_SURROGATE = re.compile("[\ud800-\udfff]")
_WHITESPACE = re.compile("[ \t\n\r]")

#: A text is cut early only when it has more characters per token that is kept than this.
_GENEROUS_CHARACTERS = 32


class PackedTokens(NamedTuple):
    """Token ids of several texts, one after another, without padding."""

    token_ids: NDArray[np.int32]
    offsets: NDArray[np.int64]


class PackedTokenizer(NamedTuple):
    """A tokenizer that was checked before, and what was found out about it then."""

    #: A tokenizer.json.
    content: bytes
    #: Whether the beginning of a text is tokenized regardless of what follows white space.
    cuts_early: bool


class TextTokenizer:
    """The model's own tokenizer, with the model's limit instead of the file's.

    Safe to call from several threads: nothing is set after construction.

    Raises
    ------
    ModelFormatError
        If tokenizer.json is damaged or needs a larger vocabulary than the model has.
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

        try:
            content = path.read_bytes() if packed is None else packed.content
            self._tokenizer = Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises a bare Exception
            raise ModelFormatError(f"{path}: not a valid tokenizer file: {error}") from error
        if packed is None:
            packed = PackedTokenizer(content, _words_are_independent(json.loads(content)))
            self._check_vocabulary(path, vocabulary)
        special = self._tokenizer.num_special_tokens_to_add(False)
        if max_length <= special:
            raise ModelFormatError(
                f"{path}: {special} special tokens leave no place in {max_length} tokens"
            )
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length)
        self._max_length = max_length
        self._do_lower_case = do_lower_case
        self._cuts_early = packed.cuts_early

    def _check_vocabulary(self, path: Path, vocabulary: int) -> None:
        largest = max(self._tokenizer.get_vocab().values(), default=0)
        if largest >= vocabulary:
            raise ModelFormatError(
                f"{path}: token id {largest} lies beyond the model's vocab_size {vocabulary}"
            )

    def packed(self) -> PackedTokenizer:
        """Return what another TextTokenizer can be made of without checking it again."""
        return PackedTokenizer(self._tokenizer.to_str().encode(), self._cuts_early)

    def pack(self, texts: Sequence[str], first: int = 0) -> PackedTokens:
        """Tokenize texts, each truncated to the model's limit; errors count from ``first``.

        Raises
        ------
        TypeError
            If an element is no string.
        ValueError
            If a text contains a lone surrogate, or gives no token at all.
        """
        rows = [self._token_ids(text, i) for i, text in enumerate(texts, first)]
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        np.cumsum(lengths, out=offsets[1:])
        flat = itertools.chain.from_iterable(rows)
        token_ids = np.fromiter(flat, dtype=np.int32, count=int(offsets[-1]))
        return PackedTokens(token_ids, offsets)

    def _token_ids(self, text: str, index: int) -> list[int]:
        if not isinstance(text, str):
            raise TypeError(f"texts[{index}]: expected str, got {type(text).__name__}")
        if self._do_lower_case:
            text = text.lower()
        ids = self._encode_beginning(text, index)
        if not ids:
            raise ValueError(f"texts[{index}]: the tokenizer gives no token for this text")
        return ids

    def _encode_beginning(self, text: str, index: int) -> list[int]:
        """Encode no more of a long text than is kept.

        Where words are tokenized one by one, the tokens of a beginning that ends before white space
        are the first tokens of the whole; when they fill the model's limit, the rest is not needed.
        """
        length = self._max_length * _GENEROUS_CHARACTERS
        while self._cuts_early and length < len(text):
            space = _WHITESPACE.search(text, length)
            if space is None:
                break
            ids = self._encode(text[: space.start()], index)
            if len(ids) == self._max_length:
                return ids
            length = space.start() * 4
        return self._encode(text, index)

    def _encode(self, text: str, index: int) -> list[int]:
        try:
            ids: list[int] = self._tokenizer.encode(text).ids
        except (TypeError, UnicodeEncodeError):
            surrogate = _SURROGATE.search(text)
            if surrogate is None:
                raise
            raise ValueError(
                f"texts[{index}]: lone surrogate {surrogate.group()!a} "
                f"at position {surrogate.start()} is no valid text"
            ) from None
        return ids


def _words_are_independent(tokenizer: Mapping[str, Any]) -> bool:
    """Whether text before white space is tokenized regardless of what follows.

    True of BERT's normalizer (character by character; combining marks attach to what precedes
    them) with BERT's splitting at white space, unless an added token spans white space.
    """
    normalizer = tokenizer.get("normalizer") or {"type": "BertNormalizer"}
    splitter = tokenizer.get("pre_tokenizer") or {}
    added = tokenizer.get("added_tokens") or []
    return (
        splitter.get("type") == "BertPreTokenizer"
        and normalizer.get("type") == "BertNormalizer"
        and not any(_WHITESPACE.search(token["content"]) for token in added)
    )
