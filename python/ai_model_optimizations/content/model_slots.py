"""The private slots in which older model managers keep their loaded models.

A manager loads a model when a property is first read, stores it in a private slot, and empties the
slot when the model has been idle. The properties have no setters, and reading one loads a model. So
only the slots are read, never the properties; and a model assigned to a slot later is quantized on
assignment, by a subclass that becomes the class of the manager's instance.
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
    """Return the models that a manager holds, by slot."""
    found = {name: getattr(manager, name, None) for name in SLOTS}
    return {name: model for name, model in found.items() if model is not None}


def model_bytes(model: Any) -> int:
    """Return the bytes of a model's weights; 0 if it does not say."""
    own = getattr(model, "memory_bytes", None)
    if isinstance(own, int):
        return own
    inner = getattr(model, "model", model)  # a pipeline's model
    total = 0
    for kind in ("parameters", "buffers"):
        listed = getattr(inner, kind, None)
        if callable(listed):
            total += sum(int(t.numel()) * int(t.element_size()) for t in listed())
    return total


class QuantizingSlots:
    """Quantizes the models in managers' slots, now and when they are assigned later.

    Parameters
    ----------
    quantizer : its ``quantize_model`` makes a smaller model; if it raises, the model stays as it
        is. Watched managers keep the quantizer alive, but nothing else of this object's creator.
    """

    def __init__(self, quantizer: Any) -> None:
        self.quantizer = quantizer
        self._lock = threading.RLock()
        self._results: dict[int, weakref.ref[Any] | None] = {}
        self._refused: dict[tuple[int, str], tuple[int, str]] = {}
        self.made = 0

    def watch(self, manager: Any, *, again: bool = False) -> int:
        """Quantize loaded models, and later ones when they load; return how many were replaced."""
        if not any(hasattr(manager, name) for name in SLOTS):
            return 0
        with self._lock:
            if again:
                self._refused.clear()
            made = self.made
            self._divert(manager)
            for name, model in loaded_models(manager).items():
                if (id(manager), name) not in self._refused:
                    setattr(manager, name, model)  # the subclass quantizes it
            return self.made - made

    def has_made(self, model: Any) -> bool:
        """Whether a model came out of `quantize`."""
        reference = self._results.get(id(model), _NEVER)
        return reference is None or (reference is not _NEVER and reference() is model)

    def refusals(self, manager: Any) -> dict[str, str]:
        """Return why models of a manager stay as they are, by slot."""
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
            except TypeError:  # it does not support weak references
                self._results[id(smaller)] = None
        return smaller

    def _forgetting(self, key: int) -> Callable[[object], object]:
        return lambda _: self._results.pop(key, None)


def _never() -> Any:
    return None


_NEVER: Any = _never
