"""Where a long text may be cut before it is tokenized without changing the tokens that are kept.

The tokens of a prefix are the first tokens of the whole text if no step of the tokenizer looks
across the cut. That is so between a letter or digit and a single space, if

- the normalizer works character by character, or on groups of characters (normal forms, graphemes)
  that such a place always separates, and keeps the space,
- the text is first split at white space, so that later steps and the model see one word at a time,
- and no added token spans white space.

Steps for which this has been shown are listed here by name; with any other step, whole texts are
tokenized. The tests compare both on random texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: Letters and digits that never form a group with a space behind them: Latin, Greek, Cyrillic,
#: Hebrew, Arabic, Devanagari, kana, CJK and Hangul. (Some characters of other blocks do.)
_WORD = (
    "0-9A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0391-\u03a1\u03a3-\u03c9\u0400-\u0481"
    "\u048a-\u052f\u05d0-\u05ea\u0620-\u064a\u0904-\u0939\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff"
    "\uac00-\ud7a3"
)
#: A single space between two such characters; behind it, other visible ASCII will do as well.
_SPACE = re.compile(f"(?<=[{_WORD}]) (?=[!-~{_WORD}])")
#: BERT's normalizer makes a word of every ideograph: between two, too.
_SPACE_OR_IDEOGRAPH = re.compile(f"{_SPACE.pattern}|(?<=[\u4e00-\u9fff])(?=[\u4e00-\u9fff])")

#: Normalizers that are known to look at no more than one character or grapheme, or a normal form.
_LOCAL_NORMALIZERS = frozenset(
    {"BertNormalizer", "Lowercase", "StripAccents", "NFC", "NFD", "NFKC", "NFKD", "Nmt",
     "Precompiled", "Strip"}
)  # fmt: skip
#: Pre-tokenizers that split at every white space (Metaspace and ByteLevel: at every space).
_SPLITTERS = frozenset({"BertPreTokenizer", "Whitespace", "WhitespaceSplit"})
#: What may follow a splitter: each of these looks at one piece at a time.
_PIECEWISE = _SPLITTERS | {"Metaspace", "Punctuation", "Digits", "ByteLevel"}


def cut_pattern(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    """Return a pattern whose matches begin where a text may be cut, None when there is none."""
    normalizer = _state(tokenizer.normalizer)
    splitter = _state(tokenizer.pre_tokenizer)
    added = tokenizer.get_added_tokens_decoder().values()
    if any(re.search(r"\s", token.content) for token in added):
        return None
    steps = list(_flat(normalizer, "normalizers"))
    if not all(_is_local(step) for step in steps) or not _splits(splitter):
        return None
    # A normalizer's table may do anything to a space; this one keeps it.
    if tokenizer.normalizer is not None and tokenizer.normalizer.normalize_str("a a") != "a a":
        return None
    if (
        [step.get("type") for step in steps] == ["BertNormalizer"]
        and steps[0].get("handle_chinese_chars") is True
        and splitter.get("type") == "BertPreTokenizer"
    ):
        return _SPACE_OR_IDEOGRAPH
    return _SPACE


def _state(part: Any) -> Mapping[str, Any]:
    """Return a part of a tokenizer as it stands in tokenizer.json."""
    if part is None:
        return {}
    state: Mapping[str, Any] = json.loads(part.__getstate__())
    return state


def _flat(step: Mapping[str, Any], key: str) -> Iterable[Mapping[str, Any]]:
    """Return the steps of a sequence, and of sequences in it."""
    if not step:
        return
    if step.get("type") != "Sequence":
        yield step
        return
    for inner in step.get(key) or ():
        yield from _flat(inner, key)


def _is_local(step: Mapping[str, Any]) -> bool:
    if step.get("type") == "Replace":
        # XLM-R's: runs of spaces become one. A single space is left alone.
        return step.get("pattern") == {"Regex": " {2,}"} and step.get("content") in (" ", "▁")
    return step.get("type") in _LOCAL_NORMALIZERS


def _splits(splitter: Mapping[str, Any]) -> bool:
    steps = list(_flat(splitter, "pretokenizers"))
    if not steps or any(step.get("type") not in _PIECEWISE for step in steps):
        return False
    first = steps[0]
    if first["type"] == "Metaspace":
        # Older files have no such key and split always.
        return first.get("split", True) is True
    if first["type"] == "ByteLevel":
        return first.get("use_regex", True) is True
    return first["type"] in _SPLITTERS
