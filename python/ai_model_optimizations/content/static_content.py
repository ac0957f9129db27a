"""``static_responses.json``: reading it, with errors that name the file, the key and the line."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..errors import ContentFileError
from .keywords import KeywordTable

FILE_NAME: Final = "static_responses.json"
#: The category whose message is the template for messages that match nothing.
DEFAULT_CATEGORY: Final = "default"
_DEFAULT_TEMPLATE: Final = 'I have no answer to "{user_input}" yet. Could you put it differently?'
# How much of the user's message a template repeats; a huge message is not sent back whole.
_LONGEST_ECHO: Final = 1000
_SETTINGS: Final[dict[str, type]] = {"default_response": str, "similarity_threshold": float}


@dataclass(frozen=True, slots=True)
class Category:
    """One answer and the texts by which it is found."""

    name: str
    message: str
    keywords: tuple[str, ...]
    group: str

    @property
    def texts(self) -> tuple[str, ...]:
        """Return the texts to embed for it: the answer, the keywords together, the name."""
        words = self.name.replace("_", " ").replace("-", " ").strip()
        return tuple(dict.fromkeys(filter(None, (self.message, ", ".join(self.keywords), words))))


@dataclass(frozen=True)
class StaticContent:
    """The content of a file.

    Attributes
    ----------
    path : the file
    stamp : changes whenever the file does
    responses, categories, settings : the file's own objects
    entries : the categories that can be matched, in the file's order
    template : the default answer, with ``{user_input}``
    threshold : the lowest similarity, if the file sets one
    """

    path: Path
    stamp: tuple[int, ...]
    responses: dict[str, Any]
    categories: dict[str, Any]
    settings: dict[str, Any]
    entries: tuple[Category, ...]
    template: str
    threshold: float | None
    keywords: KeywordTable

    def default_answer(self, message: str) -> str:
        """Return the template filled with the user's words; braces in them are plain text."""
        words = message.strip()
        if len(words) > _LONGEST_ECHO:
            words = words[:_LONGEST_ECHO] + "…"
        return self.template.replace("{user_input}", words)


def content_file(content_dir: str | os.PathLike[str]) -> Path:
    """Return the content file in a directory; a path to a .json file is returned as it is."""
    if not isinstance(content_dir, (str, os.PathLike)):
        raise TypeError(f"content_dir: expected a path, got {type(content_dir).__name__}")
    path = Path(content_dir)
    return path if path.suffix == ".json" else path / FILE_NAME


def file_stamp(path: Path) -> tuple[int, ...]:
    """Return a value that changes when the file does."""
    state = path.stat()
    return (state.st_mtime_ns, state.st_size, state.st_ino)


def read_content(path: Path) -> StaticContent:
    """Read and check a content file.

    Raises
    ------
    FileNotFoundError, OSError
        If it cannot be read.
    ContentFileError
        If it is not UTF-8, not JSON, or not structured as expected; the message says where.
    """
    try:
        stamp = file_stamp(path)
        data = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: there is no content file; expected a JSON object with responses"
        ) from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ContentFileError(f"{path}, line {line}: not UTF-8 ({error.reason})") from None
    return _Reader(path, text).content(stamp)


class _Reader:
    """Turns a file's text into checked content."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self.text = text

    def content(self, stamp: tuple[int, ...]) -> StaticContent:
        document = self._parse()
        if not isinstance(document, dict):
            raise ContentFileError(
                f"{self.path}, line 1: expected an object with responses, "
                f"got {_kind(document)}"
            )
        parts = {key: self._object(document, key) for key in ("responses", "categories")}
        settings = self._settings(document)
        entries = [self._category(name, value) for name, value in parts["responses"].items()]
        default = next((e.message for e in entries if e.name == DEFAULT_CATEGORY), None)
        matched = tuple(entry for entry in entries if entry.name != DEFAULT_CATEGORY)
        return StaticContent(
            path=self.path,
            stamp=stamp,
            responses=parts["responses"],
            categories=parts["categories"],
            settings=settings,
            entries=matched,
            template=settings.get("default_response", default or _DEFAULT_TEMPLATE),
            threshold=settings.get("similarity_threshold"),
            keywords=KeywordTable({entry.name: entry.keywords for entry in matched}),
        )

    def _parse(self) -> Any:
        def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            found: dict[str, Any] = {}
            for key, value in pairs:
                if key in found:
                    raise self._error(key, f"the key {key!r} occurs twice", last=True)
                found[key] = value
            return found

        try:
            return json.loads(self.text, object_pairs_hook=unique)
        except json.JSONDecodeError as error:
            raise ContentFileError(
                f"{self.path}, line {error.lineno}: not JSON ({error.msg})"
            ) from None
        except RecursionError:
            raise ContentFileError(f"{self.path}: nested too deeply") from None

    def _object(self, document: dict[str, Any], key: str) -> dict[str, Any]:
        value = document.get(key, {})
        if not isinstance(value, dict):
            raise self._error(key, f"{key}: expected an object, got {_kind(value)}")
        return value

    def _settings(self, document: dict[str, Any]) -> dict[str, Any]:
        settings = self._object(document, "settings")
        for key, expected in _SETTINGS.items():
            value = settings.get(key)
            if value is None:
                continue
            accepted = (int, float) if expected is float else (expected,)
            if isinstance(value, bool) or not isinstance(value, accepted):
                raise self._error(
                    key, f"settings.{key}: expected {expected.__name__}, got {_kind(value)}"
                )
        threshold = settings.get("similarity_threshold")
        if threshold is not None and not -1.0 <= threshold <= 1.0:
            raise self._error(
                "similarity_threshold",
                f"settings.similarity_threshold: a cosine in [-1, 1], got {threshold}",
            )
        return settings

    def _category(self, name: str, value: Any) -> Category:
        where = f"responses.{name}"
        if isinstance(value, str):
            return Category(name, value, (), name)
        if not isinstance(value, dict):
            raise self._error(name, f"{where}: expected an object or a string, got {_kind(value)}")
        message = value.get("message")
        if not isinstance(message, str):
            raise self._error(name, f"{where}.message: expected a string, got {_kind(message)}")
        keywords = value.get("keywords", [])
        if not isinstance(keywords, list):
            raise self._error(name, f"{where}.keywords: expected a list, got {_kind(keywords)}")
        for i, keyword in enumerate(keywords):
            if not isinstance(keyword, str):
                raise self._error(
                    name, f"{where}.keywords[{i}]: expected a string, got {_kind(keyword)}"
                )
        group = value.get("category", name)
        if not isinstance(group, str):
            raise self._error(name, f"{where}.category: expected a string, got {_kind(group)}")
        return Category(name, message, tuple(keywords), group)

    def _error(self, key: str, problem: str, *, last: bool = False) -> ContentFileError:
        """Return an error with the key's line, in whichever form JSON spells the key."""
        forms = {json.dumps(key), json.dumps(key, ensure_ascii=False)}
        pattern = "|".join(rf"{re.escape(form)}\s*:" for form in forms)
        places = [match.start() for match in re.finditer(pattern, self.text)]
        line = self.text.count("\n", 0, places[-1 if last else 0]) + 1 if places else 1
        return ContentFileError(f"{self.path}, line {line}: {problem}")


def _kind(value: object) -> str:
    """Return the JSON name of a value's type."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return "nothing" if value is None else names.get(type(value), "a number")
