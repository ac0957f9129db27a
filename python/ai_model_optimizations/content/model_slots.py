"""The private slots in which older model managers keep what they have loaded.

A manager loads a model when a property is first read, puts it into a private slot, and empties the
slot when the model was idle. The properties have no setters, and reading one loads. So the slots
are looked at, never the properties; and what is assigned to a slot later is quantized on its way
in, by a subclass that the manager's instance is given.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final

logger = logging.getLogger("ai_model_optimizations")

#: Slots of sentence models, light first, and the properties that load them.
SENTENCE_SLOTS: Final = {
    "_english_sentence_model": "english_sentence_model",
    "_turkish_sentence_model": "turkish_sentence_model",
}
SLOTS: Final = (*SENTENCE_SLOTS, "_text_generator_model")


def loaded_models(manager: Any) -> dict[str, Any]:
    """The models that a manager holds now, by slot."""
    found = {name: getattr(manager, name, None) for name in SLOTS}
    return {name: model for name, model in found.items() if model is not None}


def model_bytes(model: Any) -> int:
    """Bytes of a model's weights, as far as it says; 0 when it does not."""
    own = getattr(model, "memory_bytes", None)
    if isinstance(own, int):
        return own
    inner = getattr(model, "model", model)  # of a pipeline
    total = 0
    for kind in ("parameters", "buffers"):
        listed = getattr(inner, kind, None)
        if callable(listed):
            total += sum(int(t.numel()) * int(t.element_size()) for t in listed())
    return total


class QuantizingSlots:
    """Quantizes what stands in managers' slots, and what comes to stand there.

    Parameters
    ----------
    quantizer : its ``quantize_model`` makes a smaller model; what it raises leaves the model as it
        is. Watched managers keep the quantizer alive, and nothing else of whoever made this.
    """

    def __init__(self, quantizer: Any) -> None:
        self.quantizer = quantizer
        self._lock = threading.RLock()
        self._results: dict[int, weakref.ref[Any] | None] = {}
        self._refused: dict[tuple[int, str], tuple[int, str]] = {}
        self.made = 0

    def watch(self, manager: Any, *, again: bool = False) -> int:
        """Quantize what is loaded and see to what loads later; return how many were replaced."""
        if not any(hasattr(manager, name) for name in SLOTS):
            return 0
        with self._lock:
            if again:
                self._refused.clear()
            made = self.made
            self._divert(manager)
            for name, model in loaded_models(manager).items():
                if (id(manager), name) not in self._refused:
                    setattr(manager, name, model)  # goes the diverted way
            return self.made - made

    def has_made(self, model: Any) -> bool:
        """Whether a model came out of `quantize`."""
        reference = self._results.get(id(model), _NEVER)
        return reference is None or (reference is not _NEVER and reference() is model)

    def refusals(self, manager: Any) -> dict[str, str]:
        """Why models of a manager stay as they are, by slot."""
        held = loaded_models(manager)
        return {
            name: reason
            for (owner, name), (model, reason) in self._refused.items()
            if owner == id(manager) and id(held.get(name)) == model
        }

    def _divert(self, manager: Any) -> None:
        cls = type(manager)
        if getattr(cls, "_aimo_slots", None) is self:
            return
        slots = self
        base: Any = next(c for c in cls.__mro__ if "_aimo_slots" not in vars(c))
        set_plainly = base.__setattr__

        def assign(instance: Any, name: str, value: Any) -> None:
            if name in SLOTS and value is not None:
                value = slots._smaller(instance, name, value)
            set_plainly(instance, name, value)

        names = {
            "__setattr__": assign,
            "__slots__": (),
            "__module__": cls.__module__,
            "__qualname__": cls.__qualname__,
            "__doc__": cls.__doc__,
            "_aimo_slots": self,
        }
        diverted = type(cls.__name__, (base,), names)
        try:
            manager.__class__ = diverted
        except TypeError as error:
            logger.warning("models that %s loads later stay as they are: %s", cls.__name__, error)

    def _smaller(self, manager: Any, name: str, model: Any) -> Any:
        if self.has_made(model):
            return model
        try:
            smaller = self.quantizer.quantize_model(model)
        except Exception as error:
            with self._lock:
                reason = f"{type(error).__name__}: {error}"
                self._refused[id(manager), name] = (id(model), reason)
            logger.info("the model in %s stays as it is: %s", name, reason)
            return model
        with self._lock:
            self._refused.pop((id(manager), name), None)
            self.made += 1
            try:
                self._results[id(smaller)] = weakref.ref(smaller, self._forgetting(id(smaller)))
            except TypeError:  # no weak references to it
                self._results[id(smaller)] = None
        return smaller

    def _forgetting(self, key: int) -> Callable[[object], object]:
        return lambda _: self._results.pop(key, None)


def _never() -> Any:
    return None


_NEVER: Any = _never
