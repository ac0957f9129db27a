"""Contexts, which separate tenants, users, languages and conversations.

A context is a string or a tuple of strings, integers, booleans, None and tuples. Internally it
becomes a key that distinguishes types: as keys of a dict, ``("user", 1)`` and ``("user", True)``
would be the same tenant.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

Context: TypeAlias = str | tuple[Any, ...]
ContextKey: TypeAlias = str | tuple[str]


def _listed(part: object) -> object:
    if part is None or isinstance(part, (str, int)):
        return part
    if isinstance(part, tuple):
        return [_listed(item) for item in part]
    raise TypeError(
        f"context may hold str, int, bool, None and tuples of them, got {type(part).__name__}"
    )


def context_key(context: Context) -> ContextKey:
    """Return the dictionary key of a context: equal only if parts and types are equal."""
    if isinstance(context, str):
        # The characters themselves: an enum or a masked secret may override __str__.
        return str.__str__(context)
    if isinstance(context, tuple):
        # The JSON text is wrapped in a tuple so that it cannot equal a context that is a string.
        return (json.dumps(_listed(context), ensure_ascii=False),)
    raise TypeError(f"context must be a string or a tuple, got {type(context).__name__}")


def _tupled(part: Any) -> Any:
    return tuple(_tupled(item) for item in part) if isinstance(part, list) else part


def context_from_key(key: ContextKey) -> Context:
    """Return the context from which `context_key` made this key."""
    if isinstance(key, str):
        return key
    restored: tuple[Any, ...] = _tupled(json.loads(key[0]))
    return restored


def has_prefix(key: ContextKey, prefix: ContextKey) -> bool:
    """Whether a string context starts with a string, or a tuple one with a tuple's items."""
    if isinstance(prefix, str) or isinstance(key, str):
        return isinstance(prefix, str) and isinstance(key, str) and key.startswith(prefix)
    # Both are JSON lists; without its closing bracket the prefix must end where an item ends.
    items = prefix[0][:-1]
    return key[0].startswith(items) and (items == "[" or key[0][len(items)] in ",]")


def _spoken(message: str | Mapping[str, Any]) -> list[Any]:
    """Return who said a message, and what."""
    if isinstance(message, str):
        return ["user", message]
    if not isinstance(message, Mapping):
        raise TypeError(
            "messages: expected texts, or mappings with role and content, "
            f"got {type(message).__name__}"
        )
    return [str(message.get("role", "user")), message.get("content")]


def context_of(
    messages: Iterable[str | Mapping[str, Any]], last: int = 4, scope: Context = ""
) -> Context:
    """Return the context of a question that follows a conversation.

    "And for children?" means something different after each conversation, so only answers that
    followed the same conversation may be served.

    Parameters
    ----------
    messages : what was said before the question, oldest first: texts, or mappings with ``role``
        and ``content``. The question itself is not among them.
    last : how many of the latest messages must agree; 0 ignores the conversation
    scope : the tenant, user or language to which this conversation belongs

    Returns
    -------
    A tuple that begins with `scope`, so ``invalidate(prefix=(scope,))`` removes the answers of all
    its conversations.
    """
    if isinstance(messages, (str, bytes, Mapping)):
        raise TypeError("messages must be a sequence of messages, not one message")
    if isinstance(last, bool) or not isinstance(last, int):
        raise TypeError(f"last must be a whole number, got {last!r}")
    if last < 0:
        raise ValueError(f"last must not be negative, got {last}")
    kept = list(messages)[-last:] if last else []
    spoken = [_spoken(message) for message in kept]
    text = json.dumps(spoken, ensure_ascii=False, sort_keys=True)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return (scope, "conversation", digest[:32])
