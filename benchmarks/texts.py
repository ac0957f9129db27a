"""Three sets of real English text that every machine has: the standard library's docstrings.

short: sentences, mean of about 18 tokens; paragraph: about 42; long: whole docstrings, about 120.
mixed: a third of each.
"""

from __future__ import annotations

import ast
import functools
import itertools
import random
import re
import sysconfig
from pathlib import Path

#: Characters (from, to) of the texts of a set; English has about 4.5 to a token.
_CHARACTERS_PER_TOKEN = 4.5
LENGTHS = {"short": (45, 108), "paragraph": (110, 250), "long": (290, 830)}


@functools.cache
def _docstrings() -> list[str]:
    library = Path(sysconfig.get_path("stdlib"))
    found = []
    for source in sorted(library.glob("*.py")) + sorted(library.glob("[a-hj-z]*/*.py")):
        if "test" in source.parts or "site-packages" in source.parts:
            continue
        try:
            tree = ast.parse(source.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found += [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
    return [text for text in found if text]


def _clean(text: str) -> str:
    return " ".join(text.split())


def _is_prose(text: str) -> bool:
    letters = sum(character.isalpha() or character == " " for character in text)
    return letters > 0.85 * len(text)


@functools.cache
def _all_texts(name: str) -> list[str]:
    """Every text of a set that this version of Python has."""
    shortest, longest = LENGTHS[name]
    pieces = set()
    for docstring in _docstrings():
        if name == "long":
            candidates = [docstring]
        elif name == "paragraph":
            candidates = docstring.split("\n\n")
        else:
            candidates = re.split(r"(?<=[.!?])\s+", docstring)
        pieces.update(_clean(candidate) for candidate in candidates)
    texts = [text for text in sorted(pieces) if shortest <= len(text) <= longest]
    texts = [text for text in texts if _is_prose(text)]
    random.Random(18).shuffle(texts)
    return texts


@functools.cache
def text_set(name: str, count: int) -> list[str]:
    """Return ``count`` different texts of a set, always the same on one version of Python.

    ``"mixed"`` takes equally many of each set and shuffles them.
    """
    if name == "mixed":
        third = -(-count // len(LENGTHS))
        mixed = [text for each in LENGTHS for text in text_set(each, third)]
        random.Random(18).shuffle(mixed)
        return mixed[:count]
    texts = _all_texts(name)
    if len(texts) < count:
        raise ValueError(f"{name}: this Python has {len(texts)} such texts, {count} were asked for")
    return texts[:count]


def enough_texts(name: str, tokens: int) -> list[str]:
    """Return texts of a set with about so many tokens in all, repeating the set as needed.

    ``"full"`` joins six long texts into one, which fills a model of 512 tokens.
    """
    if name == "full":
        longs = itertools.cycle(_all_texts("long"))
        return [" ".join(itertools.islice(longs, 6)) for _ in range(-(-tokens // 512))]
    texts, characters = [], 0
    for text in itertools.cycle(_all_texts(name)):
        texts.append(text)
        characters += len(text)
        if characters >= tokens * _CHARACTERS_PER_TOKEN:
            return texts
    raise ValueError(f"{name}: this Python has no such texts")
