"""What a cache may hold: bytes, str, JSON, or anything that the user's serializer handles.

JSON values are kept as text and parsed on every hit, so that changing an answer does not change the
cached one, and so that the byte budget counts what is really held. Pickle is never used: a cache
file could then run code.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Protocol, TypeAlias


class Serializer(Protocol):
    """Turns values of the user's own types into bytes and back."""

    def dumps(self, value: Any, /) -> bytes:
        """Return the bytes of `value`."""

    def loads(self, data: bytes, /) -> Any:
        """Return the value of `data`."""


class UnreadableValueError(Exception):
    """The user's serializer raised; the error is the cause."""


class Json(bytes):
    """A value that was JSON."""

    __slots__ = ()


class Serialized(bytes):
    """A value that the user's serializer wrote."""

    __slots__ = ()


StoredValue: TypeAlias = str | bytes | Json | Serialized

_KINDS: dict[type, str] = {str: "s", bytes: "b", Json: "j", Serialized: "u"}


def _encode_json(value: object) -> Json:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        unchanged = json.loads(text) == value
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(
            f"value of type {type(value).__name__} is not bytes, str or JSON ({error}); "
            "give SmartCache a serializer for it"
        ) from None
    if not unchanged:
        raise TypeError(
            "value would come back changed from JSON (a tuple, or a key that is not a string); "
            "give SmartCache a serializer for it"
        )
    return Json(text.encode("utf-8", "surrogatepass"))


def encode_value(value: object, serializer: Serializer | None) -> StoredValue:
    """Return the immutable form in which a value is held; TypeError when there is none."""
    if type(value) is str or type(value) is bytes:
        return value
    if serializer is None:
        return _encode_json(value)
    data = serializer.dumps(value)
    if not isinstance(data, bytes):
        raise TypeError(f"serializer.dumps must return bytes, got {type(data).__name__}")
    return Serialized(data)


def decode_value(stored: StoredValue, serializer: Serializer | None) -> Any:
    """Return the value; JSON values are a fresh copy each time.

    Raises
    ------
    UnreadableValueError
        If ``serializer.loads`` raises.
    TypeError
        If there is no serializer for a value that one wrote.
    """
    kind = type(stored)
    if kind is Json:
        return json.loads(stored)
    if kind is Serialized:
        if serializer is None:
            raise TypeError("this value was written by a serializer; give SmartCache the same one")
        try:
            return serializer.loads(bytes(stored))  # type: ignore[arg-type]
        except Exception as error:
            raise UnreadableValueError from error
    return stored


def value_bytes(stored: StoredValue) -> int:
    """Return the bytes that a stored value occupies."""
    return sys.getsizeof(stored)


def pack_value(stored: StoredValue) -> tuple[str, bytes]:
    """Return the kind and the raw bytes of a stored value, for a file."""
    kind = _KINDS[type(stored)]
    if isinstance(stored, str):
        return kind, stored.encode("utf-8", "surrogatepass")
    return kind, bytes(stored)


def unpack_value(kind: str, data: bytes) -> StoredValue:
    """Return what `pack_value` was given."""
    if kind == "s":
        return data.decode("utf-8", "surrogatepass")
    if kind == "b":
        return data
    if kind == "j":
        return Json(data)
    if kind == "u":
        return Serialized(data)
    raise ValueError(f"unknown kind of value {kind!r}")
