"""Chooses an embedding model by what a request needs and what each model costs here.

Every registered model is checked against the request, and each result can be read afterwards.
Models load on first use, once however many callers ask, and are unloaded only when nobody uses
them. Vectors of two models never mix silently: results carry their ``space_id``.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..embedding.arguments import check_number
from ..embedding.engine import Embedder, model_loader
from ..embedding.token_estimate import guess_tokens
from ..embedding.vectors import Embedding
from ..errors import NoSuitableModelError
from .choice import Candidate, Request, Selection, by_latency, by_quality, candidate, refusal, suits
from .language import detect_language
from .load_governor import LoadGovernor
from .model_shelf import Entry, ModelShelf
from .profile import LatencyProfile


class AdaptiveModelSelector:
    """Registers models and selects one for each request.

    >>> selector = AdaptiveModelSelector()
    >>> selector.register("small", "all-MiniLM-L6-v2", quality=0.7, languages=["en"])
    >>> selector.register("turkish", load_turkish_model, quality=0.8, languages=["tr"])
    >>> choice = selector.select("Siparişim nerede?", max_latency_ms=50)
    >>> with selector.use(choice) as model:
    ...     vector = model.encode("Siparişim nerede?")

    Parameters
    ----------
    idle_seconds : unload a model that nobody has used for this long; None keeps it
    profile_seconds : time for measuring a model when it is first loaded
    detect : from a text to its language's code or None
    dwell_seconds : least time between two changes of a family's variant under load
    """

    def __init__(
        self,
        *,
        idle_seconds: float | None = None,
        profile_seconds: float = 0.3,
        detect: Callable[[str], str | None] = detect_language,
        dwell_seconds: float = 30.0,
    ) -> None:
        if idle_seconds is not None:
            check_number("idle_seconds", idle_seconds, at_least_zero=False)
        check_number("profile_seconds", profile_seconds, at_least_zero=False)
        check_number("dwell_seconds", dwell_seconds, at_least_zero=True)
        if not callable(detect):
            raise TypeError(f"detect: expected a function, got {type(detect).__name__}")
        self._detect = detect
        self._dwell_seconds = dwell_seconds
        self._shelf = ModelShelf(idle_seconds, profile_seconds)
        self._lock = threading.Lock()  # protects the governors
        self._governors: dict[str, LoadGovernor] = {}

    def register(
        self,
        name: str,
        model_or_loader: Embedder | Callable[[], Embedder] | str | os.PathLike[str],
        *,
        quality: float,
        languages: Sequence[str] | None = None,
        max_tokens: int | None = None,
        memory_mb: float | None = None,
        family: str | None = None,
    ) -> None:
        """Add a model.

        Parameters
        ----------
        name
            What :meth:`select` calls it.
        model_or_loader
            A model, a function that returns one, or the name or path of one; the latter two are
            loaded on first use, once, and can be unloaded.
        quality
            Any scale, higher is better; the same scale for all models.
        languages
            ISO codes that it is good at; None for any.
        max_tokens
            Longer texts are not given to it. Without it they are, and what lies beyond the model's
            own limit is not read.
        memory_mb
            What it takes; the model's own figure, or the growth of the process, when None.
        family
            Precision variants of one model, which may replace each other under load. None for a
            model that never is replaced. Variants whose ``space_id`` differs are refused.

        Raises
        ------
        TypeError, ValueError
            If an argument is of the wrong kind or the name is taken.
        """
        if not isinstance(name, str) or not name:
            raise ValueError(f"name: expected a string that is not empty, got {name!r}")
        _check_finite("quality", quality)
        if isinstance(languages, str):
            raise TypeError(
                f"languages: expected a sequence of codes, got the string {languages!r}"
            )
        for argument, value in (("max_tokens", max_tokens), ("memory_mb", memory_mb)):
            if value is not None:
                check_number(argument, value, at_least_zero=False)
        codes = None if languages is None else frozenset(languages)
        if codes is not None and not all(isinstance(code, str) for code in codes):
            raise TypeError(f"languages: expected codes as str, got {languages!r}")
        entry = Entry(
            name,
            model_loader(model_or_loader, "model_or_loader"),
            float(quality),
            codes,
            max_tokens,
            memory_mb,
            family,
            pinned=hasattr(model_or_loader, "encode") and not isinstance(model_or_loader, type),
        )
        if family is not None:
            with self._lock:
                self._governors.setdefault(family, LoadGovernor(self._dwell_seconds))
        self._shelf.add(entry)

    @property
    def names(self) -> list[str]:
        """The registered models, in order."""
        return list(self._shelf.entries)

    @property
    def loaded(self) -> list[str]:
        """The models that are in memory now."""
        return [entry.name for entry in self._shelf.entries.values() if entry.engine is not None]

    def profile(self, name: str) -> LatencyProfile | None:
        """Return what was measured when the model was loaded; None before."""
        return self._shelf.entry(name).profile

    # ---- choosing ----

    def select(
        self,
        text: str | None = None,
        *,
        max_latency_ms: float | None = None,
        max_memory_mb: float | None = None,
        min_quality: float | None = None,
        language: str | None = None,
        quality_priority: bool = False,
    ) -> Selection:
        """Choose a model; loads nothing.

        Among the models that meet every requirement the quickest is chosen, or the best with
        `quality_priority`. A model that was never loaded has no known latency and comes after
        those that do.

        Parameters
        ----------
        text
            What will be embedded: its length and, without `language`, its language are considered.
        max_latency_ms
            Longest predicted latency.
        max_memory_mb
            Most memory that the model may take.
        min_quality
            Least registered quality.
        language
            The text's language.
        quality_priority
            Prefer quality over latency.

        Raises
        ------
        NoSuitableModelError
            If no model meets the requirements; the message says why for each.
        TypeError, ValueError
            If `text` is not a string, or a requirement is not one of the above.
        """
        if text is not None and not isinstance(text, str):
            raise TypeError(f"text: expected str or None, got {type(text).__name__}")
        guess, is_ascii = 2.0, True
        if text is not None:
            guess, is_ascii = guess_tokens(text), text.isascii()
            if language is None:
                language = self._detect(text)
        request = Request(language, max_latency_ms, max_memory_mb, min_quality, quality_priority)
        _check_requirements(request)
        candidates = [candidate(e, guess, is_ascii) for e in self._shelf.entries.values()]
        suitable = [c for c in candidates if suits(c, request)]
        if not suitable:
            raise NoSuitableModelError(refusal(candidates, request))
        first = min(suitable, key=by_quality if quality_priority else by_latency)
        return Selection(self._under_load(first, suitable), first, candidates, request)

    def _under_load(self, first: Candidate, suitable: list[Candidate]) -> Candidate:
        """Return the first choice or, when its family is stepped down, a quicker variant of it."""
        family = first.entry.family
        step = self._governors[family].step if family is not None else 0
        if not step:
            return first
        variants = [
            c for c in suitable if c.entry.family == family and c.predicted_ms <= first.predicted_ms
        ]
        variants.sort(key=by_latency, reverse=True)
        return variants[min(step, len(variants) - 1)]

    # ---- using ----

    @contextmanager
    def use(self, choice: Selection | str) -> Iterator[Any]:
        """Lend the model of a choice: loaded if need be, and not unloaded inside the block.

        The time that the block takes is what steps a family's variants up and down, when the
        choice had a `max_latency_ms`.
        """
        if not isinstance(choice, (str, Selection)):
            raise TypeError(f"choice: expected a Selection or a name, got {type(choice).__name__}")
        name = choice if isinstance(choice, str) else choice.name
        entry = self._shelf.entry(name)
        engine = self._shelf.lease(entry)
        began = time.perf_counter()
        try:
            yield engine.model
        finally:
            milliseconds = (time.perf_counter() - began) * 1e3
            self._shelf.give_back(entry)
            if isinstance(choice, Selection) and choice.max_latency_ms is not None:
                self.observe(name, milliseconds, choice.max_latency_ms)

    def embed(self, text: str, **requirements: Any) -> Embedding:
        """Select a model for `text` by the requirements of :meth:`select` and embed it.

        Returns
        -------
        a list of floats that carries the model's ``space_id``
        """
        if not isinstance(text, str):
            raise TypeError(f"text: expected str, got {type(text).__name__}")
        choice = self.select(text, **requirements)
        entry = self._shelf.entry(choice.name)
        with self.use(choice):
            engine = entry.engine
            assert engine is not None, "a lent model is loaded"
            return Embedding.from_array(engine.encode([text])[0], engine.space_id)

    def observe(self, name: str, milliseconds: float, budget_ms: float) -> None:
        """Take note of what a request really took, queueing included; :meth:`use` does it."""
        entry = self._shelf.entry(name)
        if entry.family is None:
            return
        with self._lock:
            variants = sum(other.family == entry.family for other in self._shelf.entries.values())
            self._governors[entry.family].observe(milliseconds / budget_ms, variants - 1)

    # ---- loading and unloading ----

    def load(self, name: str) -> None:
        """Load and measure a model now, so that the first request does not wait for it."""
        entry = self._shelf.entry(name)
        self._shelf.lease(entry)
        self._shelf.give_back(entry)

    def unload(self, name: str) -> bool:
        """Drop a model; one in use goes when its last user is done.

        False if it is not loaded, or was registered as a model and is its owner's.
        """
        return self._shelf.unload(name)

    def release_memory(self, _event: object = None) -> list[str]:
        """Unload every model that nobody uses now; returns their names.

        Fits ``memory_monitor.on_threshold(selector.release_memory)``.
        """
        return self._shelf.release_idle()

    def close(self) -> None:
        """Unload what nobody uses, the rest when it is returned; take no more work."""
        self._shelf.close()

    def __enter__(self) -> AdaptiveModelSelector:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_requirements(request: Request) -> None:
    if request.language is not None and not isinstance(request.language, str):
        raise TypeError(f"language: expected str, got {type(request.language).__name__}")
    if request.max_latency_ms not in (None, math.inf):
        check_number("max_latency_ms", request.max_latency_ms, at_least_zero=False)
    if request.max_memory_mb not in (None, math.inf):
        check_number("max_memory_mb", request.max_memory_mb, at_least_zero=True)
    if request.min_quality is not None:
        _check_finite("min_quality", request.min_quality)


def _check_finite(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not np.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value}")
