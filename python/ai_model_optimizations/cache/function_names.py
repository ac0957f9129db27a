"""Names that distinguish the functions of a cache and stay the same after a restart."""

from __future__ import annotations

import threading
import types
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

#: Marks a function that its name alone identifies, however often its module is loaded.
_BY_NAME: Final = object()


class FunctionNames:
    """Gives each decorated function a name; a second function of the same name gets a number.

    A module's function is identified by its name. Lambdas, nested functions and bound methods may
    share a name with others that capture different values and answer differently: they count as the
    same function only if their code or object is the same and they capture nothing.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._known: dict[str, list[tuple[object, int]]] = {}

    def name_of(self, function: Callable[..., Any]) -> str:
        """Return the name under which answers of `function` are kept."""
        kind = type(function)
        module = getattr(function, "__module__", None) or kind.__module__
        name = f"{module}.{getattr(function, '__qualname__', kind.__qualname__)}"
        mark = _mark(function, name)
        with self._lock:
            known = self._known.setdefault(name, [])
            known[:] = [seen for seen in known if not _is_dead(seen[0])]
            number = next((n for seen, n in known if _is_same(seen, mark)), None)
            if number is None:
                self._counts[name] += 1
                number = self._counts[name]
                if mark is not None:
                    known.append((mark, number))
        return name if number == 1 else f"{name}#{number}"


def _mark(function: Callable[..., Any], name: str) -> object | None:
    """Return what distinguishes a function from others of its name; None if it is unique."""
    owner = getattr(function, "__self__", None)
    if owner is not None and not isinstance(owner, types.ModuleType):
        try:
            return weakref.ref(owner)
        except TypeError:
            return None
    if not hasattr(function, "__qualname__"):
        return None  # a partial, or a callable object
    if "<" not in name:
        return _BY_NAME
    captures = ("__closure__", "__defaults__", "__kwdefaults__")
    if any(getattr(function, part, None) for part in captures):
        return None
    code: object = getattr(function, "__code__", None)
    return code


def _is_same(seen: object, mark: object | None) -> bool:
    # One object has one weak reference; comparing references would call the objects' own __eq__.
    return seen is mark or (isinstance(mark, types.CodeType) and seen == mark)


def _is_dead(mark: object) -> bool:
    return isinstance(mark, weakref.ref) and mark() is None
