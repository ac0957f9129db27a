"""Objects whose every method bites, and a census among them. Prints JSON; see test_census.py."""

from __future__ import annotations

import functools
import gc
import json
import os
import sys
import types
import weakref
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np

from ai_model_optimizations.memory_monitor import census

calls: list[str] = []

DUNDERS = [
    "__eq__",
    "__ne__",
    "__lt__",
    "__hash__",
    "__bool__",
    "__len__",
    "__repr__",
    "__str__",
    "__format__",
    "__sizeof__",
    "__getattr__",
    "__getattribute__",
    "__iter__",
    "__contains__",
    "__getitem__",
    "__call__",
    "__index__",
    "__int__",
    "__reduce_ex__",
    "__dir__",
    "__enter__",
    "__instancecheck__",
    "__subclasscheck__",
    "__mro_entries__",
    "__set__",
    "__get__",
]


def bite(name: str) -> Any:
    def method(*_: Any, **__: Any) -> Any:
        calls.append(name)
        raise KeyboardInterrupt(name)

    return method


#: Making and naming the classes needs these of the metaclass.
NEEDED = ("__hash__", "__eq__", "__ne__", "__getattribute__", "__call__")
META_BODY: dict[str, Any] = {
    **{name: bite(f"meta {name}") for name in DUNDERS if name not in NEEDED},
    **{name: property(bite(f"meta {name}")) for name in ("__name__", "__class__")},
    "__module__": __name__,
}
BitingMeta = type("BitingMeta", (type,), META_BODY)


def biting_class(base: type = object, meta: type = type) -> type:
    body = {name: bite(name) for name in DUNDERS}
    body["__class__"] = property(bite("__class__"))
    body["__module__"] = __name__
    return types.new_class("Biting", (base,), {"metaclass": meta}, lambda ns: ns.update(body))


class Keyed:
    """A class whose namespace gets a key with the hash of "__module__" that bites."""


class EvilKey:
    armed = False

    def __hash__(self) -> int:
        return hash("__module__")

    def __eq__(self, other: object) -> bool:
        if self.armed:
            calls.append("key __eq__")
        return False


class LazyModule(types.ModuleType):
    def __getattribute__(self, name: str) -> Any:
        calls.append(f"module {name}")
        raise ImportError(name)


def zoo() -> Iterator[Any]:
    bases = (object, list, dict, tuple, set, frozenset, bytearray, Exception, types.ModuleType)
    for base in bases:
        for cls in (biting_class(base), biting_class(base, BitingMeta)):
            yield base.__new__(cls)
    yield weakref.proxy(Keyed())  # dead at once
    yield mock.Mock(spec=np.ndarray)
    key = functools.cmp_to_key(lambda a, b: 0)
    yield [key, key(1), [key(2)], {"k": key}]
    (namespace,) = (o for o in gc.get_referents(Keyed) if type(o) is dict)
    namespace[EvilKey()] = 1
    yield Keyed()


def hostile_torches() -> Iterator[Any]:
    yield LazyModule("torch")
    yield object.__new__(biting_class())
    yield None
    yield 7
    without_a_class = types.ModuleType("torch")
    without_a_class.__dict__["Tensor"] = object.__new__(biting_class())
    yield without_a_class


def main(buffers: bool) -> None:
    animals, torches = list(zoo()), list(hostile_torches())
    counts: dict[str, int] = {}
    tensors = []
    calls.clear()
    EvilKey.armed = True
    for torch in torches:
        sys.modules["torch"] = torch
        result = census.take(buffers=buffers)
        counts = {entry.name: entry.count for entry in result.by_type}
        tensors += [t.name for t in result.tensors]
    EvilKey.armed = False
    report = {"animals": len(animals), "calls": calls, "counts": counts, "tensors": tensors}
    print(json.dumps(report), flush=True)
    os._exit(0)  # so that nothing touches the animals on the way out either


if __name__ == "__main__":
    main(sys.argv[1] == "True")
