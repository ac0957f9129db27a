"""Objects that object: whatever a monitor calls on them is counted and raises a BaseException."""

import functools
import weakref
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

CALLS: list[str] = []

_INSTANCE_METHODS = [
    "__eq__",
    "__ne__",
    "__lt__",
    "__le__",
    "__gt__",
    "__ge__",
    "__hash__",
    "__bool__",
    "__len__",
    "__iter__",
    "__contains__",
    "__repr__",
    "__str__",
    "__bytes__",
    "__format__",
    "__sizeof__",
    "__dir__",
    "__getattr__",
    "__getattribute__",
    "__getitem__",
    "__call__",
    "__int__",
    "__float__",
    "__index__",
    "__reduce__",
    "__reduce_ex__",
    "__copy__",
    "__deepcopy__",
    "__enter__",
    "__exit__",
    "__await__",
    "__get__",
    "__instancecheck__",
    "__subclasscheck__",
    "__array__",
    "__torch_function__",
    "__torch_dispatch__",
    "__length_hint__",
]
_CLASS_METHODS = [
    "__eq__",
    "__ne__",
    "__hash__",
    "__bool__",
    "__len__",
    "__iter__",
    "__contains__",
    "__repr__",
    "__str__",
    "__sizeof__",
    "__dir__",
    "__getattr__",
    "__getattribute__",
    "__getitem__",
    "__call__",
    "__instancecheck__",
    "__subclasscheck__",
]


class ForeignCall(BaseException):
    """Raised by every method below: nothing may catch it by catching Exception."""


def _trap(name: str) -> Any:
    def method(*_arguments: object, **_keywords: object) -> Any:
        CALLS.append(name)
        raise ForeignCall(name)

    return method


def _count_only(name: str) -> Any:
    def method(*_arguments: object) -> None:
        CALLS.append(name)

    return method


_traps: dict[str, Any] = {name: _trap(name) for name in _INSTANCE_METHODS}
_traps["__class__"] = property(_trap("__class__"))
_traps["__del__"] = _count_only("__del__")  # it must not raise where nobody can catch it

#: A class with every trap, one without a dict, and subclasses of builtins that are walked.
Hostile = type("Hostile", (), dict(_traps))
HostileSlots = type("HostileSlots", (), {**_traps, "__slots__": ("held", "__weakref__")})
HostileList = type("HostileList", (list,), dict(_traps))
HostileDict = type("HostileDict", (dict,), dict(_traps))
HostileTuple = type("HostileTuple", (tuple,), dict(_traps))
HostileInt = type("HostileInt", (int,), dict(_traps))
HostileStr = type("HostileStr", (str,), dict(_traps))

_meta_traps = {name: _trap("meta " + name) for name in _CLASS_METHODS}
HostileMeta = type("HostileMeta", (type,), _meta_traps)
HostileClass = type.__new__(HostileMeta, "HostileClass", (), {"__module__": "somewhere"})


class EqualToAnything(str):
    """A key that Python compares with every key of its hash; harmless until it is armed."""

    armed = False

    def __hash__(self) -> int:
        return hash("__module__")

    def __eq__(self, other: object) -> bool:
        if not EqualToAnything.armed:
            return False
        CALLS.append("key __eq__")
        raise ForeignCall("key __eq__")


def _dead_proxies() -> list[Any]:
    class Mortal:
        def __call__(self) -> None:
            pass

    mortal = Mortal()
    callable_proxy = weakref.proxy(mortal)

    class Plain:
        pass

    plain = Plain()
    return [callable_proxy, weakref.proxy(plain)]


def _instances() -> Iterator[Any]:
    yield object.__new__(Hostile)
    yield object.__new__(HostileSlots)
    yield list.__new__(HostileList)
    yield dict.__new__(HostileDict)
    yield tuple.__new__(HostileTuple, (1, []))
    yield int.__new__(HostileInt, 1 << 200)
    yield str.__new__(HostileStr, "text")
    yield object.__new__(HostileClass)
    yield HostileClass
    key = functools.cmp_to_key(lambda _a, _b: 0)(1)
    yield key
    yield [key]
    yield {"key": key}
    yield Mock(spec=dict)
    yield from _dead_proxies()


def build() -> list[Any]:
    """The zoo: each animal alone, in containers, and in cycles with itself. Keep the list."""
    animals = list(_instances())
    cages: list[Any] = []
    for animal in animals:
        cage: list[Any] = [animal, (animal, []), {"animal": animal}]
        cage.append(cage)
        cages.append(cage)
    odd_class = type("OddClass", (), {})
    type.__setattr__(odd_class, "plain", 1)
    hostile = animals[0]
    object.__setattr__(hostile, "me", hostile)
    CALLS.clear()  # building is not scanning
    return [animals, cages, odd_class]
