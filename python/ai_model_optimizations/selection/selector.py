"""Chooses an embedding model by what a request needs and what each model costs here.

Every registered model is judged against the request, and every verdict can be read afterwards.
Models load on first use, once however many ask, and are unloaded only when nobody uses them.
Vectors of two models never mix silently: what comes out carries its ``space_id``.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from ..embedding.engine import Embedder, Engine, model_loader
from ..embedding.token_estimate import TokenEstimator, guess_tokens
from ..embedding.vectors import Embedding
from ..errors import ClosedError, NoSuitableModelError, SpaceMismatchError
from .language import detect_language
from .load_governor import LoadGovernor
from .profile import LatencyProfile, measure

logger = logging.getLogger("ai_model_optimizations")

_MIB: Final = 2**20
# Texts that teach a model's rate of tokens to characters when it is loaded.
_TYPICAL_TEXTS: Final = (
    ["How do I reset the password of my account?", "The order has not arrived yet, where is it?"],
    ["Şifremi nasıl değiştirebilirim?", "Siparişim henüz ulaşmadı, şu an nerede?"],
)


@dataclass(frozen=True)
class _Request:
    """What a selection was asked for."""

    language: str | None
    max_latency_ms: float | None
    max_memory_mb: float | None
    min_quality: float | None
    quality_priority: bool


@dataclass(frozen=True)
class _Candidate:
    """A model as it was at the time of a selection."""

    entry: _Entry
    tokens: int
    predicted_ms: float  # infinite before it was ever loaded
    loaded: bool


class Selection:
    """One choice and why.

    Attributes
    ----------
    name : the chosen model
    predicted_ms : expected latency, loading included when it is not loaded; None before the model
        has ever been loaded
    quality : as registered
    space_id : the space of its vectors; None before it has been loaded
    max_latency_ms : the request's limit, kept for the observation of what it really took
    """

    __slots__ = ("_candidates", "_chosen", "_first", "_request", "max_latency_ms", "name",
                 "predicted_ms", "quality", "space_id")  # fmt: skip

    def __init__(
        self,
        chosen: _Candidate,
        first: _Candidate,
        candidates: list[_Candidate],
        request: _Request,
    ) -> None:
        self.name = chosen.entry.name
        self.quality = chosen.entry.quality
        self.space_id = chosen.entry.space_id
        self.predicted_ms = None if chosen.predicted_ms == math.inf else chosen.predicted_ms
        self.max_latency_ms = request.max_latency_ms
        self._chosen = chosen
        self._first = first
        self._candidates = candidates
        self._request = request

    @property
    def reasons(self) -> dict[str, str]:
        """For every registered model, in order, why it was chosen or not."""
        return {c.entry.name: self._reason(c) for c in self._candidates}

    def _reason(self, candidate: _Candidate) -> str:
        objection = _objection(candidate, self._request)
        if objection is not None:
            return objection
        if candidate is not self._chosen:
            if candidate.predicted_ms == math.inf:
                return "suitable, but its latency is unknown before it is first loaded"
            return f"suitable, but {self.name!r} is preferred"
        if candidate is not self._first:
            return f"chosen: variant of {self._first.entry.name!r}, which is slow now"
        return f"chosen: {'best quality' if self._request.quality_priority else 'quickest'}"

    def __repr__(self) -> str:
        return f"Selection(name={self.name!r}, predicted_ms={self.predicted_ms})"


class _Entry:
    """A registered model. Protected by the selector's lock, but for `loading`."""

    def __init__(
        self,
        name: str,
        load: Callable[[], Embedder],
        quality: float,
        languages: frozenset[str] | None,
        max_tokens: int | None,
        memory_mb: float | None,
        family: str | None,
        *,
        pinned: bool,
    ) -> None:
        self.name = name
        self.load = load
        self.quality = quality
        self.languages = languages
        self.max_tokens = max_tokens
        self.memory_mb = memory_mb
        self.family = family
        self.pinned = pinned  # the caller made it and holds it, so unloading would free nothing
        self.loading = threading.Lock()
        self.engine: Engine | None = None
        self.space_id: str | None = None
        self.profile: LatencyProfile | None = None
        self.load_ms = 0.0
        self.tokens = TokenEstimator()
        self.reads: float = math.inf  # tokens of a text that the model looks at
        self.users = 0
        self.last_used = 0.0
        self.condemned = False  # to be unloaded by its last user

    def speaks(self, language: str) -> bool:
        return self.languages is None or language in self.languages

    @property
    def is_idle(self) -> bool:
        return self.engine is not None and not self.users and not self.pinned

    def candidate(self, tokens: int) -> _Candidate:
        """Return the model with its prediction for a text of `tokens`."""
        loaded = self.engine is not None
        predicted = math.inf
        if self.profile is not None:
            predicted = self.profile.predict(min(tokens, self.reads))
            if not loaded:
                predicted += self.load_ms
        return _Candidate(self, tokens, predicted, loaded)


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
    idle_seconds : unload a model that nobody has used for so long; None keeps it
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
            _check_positive("idle_seconds", idle_seconds)
        _check_positive("profile_seconds", profile_seconds)
        self._idle_seconds = idle_seconds
        self._profile_seconds = profile_seconds
        self._detect = detect
        self._dwell_seconds = dwell_seconds
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._governors: dict[str, LoadGovernor] = {}
        self._wake = threading.Condition(self._lock)
        self._janitor: threading.Thread | None = None
        self._closed = False

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
        if isinstance(quality, bool) or not isinstance(quality, (int, float)):
            raise TypeError(f"quality: expected a number, got {type(quality).__name__}")
        if not math.isfinite(quality):
            raise ValueError(f"quality: expected a finite number, got {quality}")
        if isinstance(languages, str):
            raise TypeError(
                f"languages: expected a sequence of codes, got the string {languages!r}"
            )
        for argument, value in (("max_tokens", max_tokens), ("memory_mb", memory_mb)):
            if value is not None:
                _check_positive(argument, value)
        entry = _Entry(
            name,
            model_loader(model_or_loader, "model_or_loader"),
            float(quality),
            None if languages is None else frozenset(languages),
            max_tokens,
            memory_mb,
            family,
            pinned=hasattr(model_or_loader, "encode"),
        )
        with self._lock:
            if self._closed:
                raise ClosedError("the model selector is closed")
            if name in self._entries:
                raise ValueError(f"name: {name!r} is registered already")
            self._entries = {**self._entries, name: entry}  # select() reads it without the lock
            if family is not None:
                self._governors.setdefault(family, LoadGovernor(self._dwell_seconds))

    @property
    def names(self) -> list[str]:
        """The registered models, in order."""
        return list(self._entries)

    @property
    def loaded(self) -> list[str]:
        """The models that are in memory now."""
        return [entry.name for entry in self._entries.values() if entry.engine is not None]

    def profile(self, name: str) -> LatencyProfile | None:
        """Return what was measured when the model was loaded; None before."""
        return self._entry(name).profile

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
        TypeError
            If `text` is no string.
        """
        if text is not None and not isinstance(text, str):
            raise TypeError(f"text: expected str or None, got {type(text).__name__}")
        guess, is_ascii = 2.0, True
        if text is not None:
            guess, is_ascii = guess_tokens(text), text.isascii()
            if language is None:
                language = self._detect(text)
        request = _Request(language, max_latency_ms, max_memory_mb, min_quality, quality_priority)
        candidates = [
            entry.candidate(entry.tokens.correct(guess, is_ascii))
            for entry in self._entries.values()
        ]
        suitable = [candidate for candidate in candidates if _suits(candidate, request)]
        if not suitable:
            raise NoSuitableModelError(_refusal(candidates, request))
        first = min(suitable, key=_by_quality if quality_priority else _by_latency)
        return Selection(self._under_load(first, suitable), first, candidates, request)

    def _under_load(self, first: _Candidate, suitable: list[_Candidate]) -> _Candidate:
        """Return the first choice or, when its family is stepped down, a quicker variant of it."""
        family = first.entry.family
        step = self._governors[family].step if family is not None else 0
        if not step:
            return first
        variants = [
            candidate
            for candidate in suitable
            if candidate.entry.family == family and candidate.predicted_ms <= first.predicted_ms
        ]
        variants.sort(key=_by_latency, reverse=True)
        return variants[min(step, len(variants) - 1)]

    # ---- using ----

    @contextmanager
    def use(self, choice: Selection | str) -> Iterator[Any]:
        """Lend the model of a choice: loaded if need be, and not unloaded inside the block.

        The time that the block takes is what steps a family's variants up and down, when the
        choice had a `max_latency_ms`.
        """
        name = choice if isinstance(choice, str) else choice.name
        entry = self._entry(name)
        engine = self._lease(entry)
        began = time.perf_counter()
        try:
            yield engine.model
        finally:
            milliseconds = (time.perf_counter() - began) * 1e3
            self._return(entry)
            if isinstance(choice, Selection) and choice.max_latency_ms is not None:
                self.observe(name, milliseconds, choice.max_latency_ms)

    def embed(self, text: str, **requirements: Any) -> Embedding:
        """Select a model for `text` by the requirements of :meth:`select` and embed it.

        Returns
        -------
        a list of floats that carries the model's ``space_id``
        """
        choice = self.select(text, **requirements)
        entry = self._entry(choice.name)
        with self.use(choice):
            engine = entry.engine
            assert engine is not None, "a lent model is loaded"
            return Embedding.from_array(engine.encode([text])[0], engine.space_id)

    def observe(self, name: str, milliseconds: float, budget_ms: float) -> None:
        """Take note of what a request really took, queueing included; :meth:`use` does it."""
        entry = self._entry(name)
        if entry.family is None:
            return
        with self._lock:
            variants = sum(other.family == entry.family for other in self._entries.values())
            self._governors[entry.family].observe(milliseconds / budget_ms, variants - 1)

    # ---- loading and unloading ----

    def load(self, name: str) -> None:
        """Load and measure a model now, so that the first request does not wait for it."""
        entry = self._entry(name)
        self._lease(entry)
        self._return(entry)

    def unload(self, name: str) -> bool:
        """Drop a model; one in use goes when its last user is done.

        False if it is not loaded, or was registered as a model and is its owner's.
        """
        entry = self._entry(name)
        with self._lock:
            if entry.engine is None or entry.pinned:
                return False
            if entry.users:
                entry.condemned = True
            else:
                self._drop(entry)
        return True

    def release_memory(self, _event: object = None) -> list[str]:
        """Unload every model that nobody uses now; returns their names.

        Fits ``memory_monitor.on_threshold(selector.release_memory)``.
        """
        with self._lock:
            idle = [entry for entry in self._entries.values() if entry.is_idle]
            for entry in idle:
                self._drop(entry)
        return [entry.name for entry in idle]

    def close(self) -> None:
        """Unload what nobody uses, the rest when it is returned; take no more work."""
        with self._lock:
            self._closed = True
            for entry in self._entries.values():
                if entry.users:
                    entry.condemned = True
                elif entry.engine is not None:
                    self._drop(entry)
            self._wake.notify_all()
            janitor = self._janitor
        if janitor is not None:
            janitor.join()

    def __enter__(self) -> AdaptiveModelSelector:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _entry(self, name: str) -> _Entry:
        try:
            return self._entries[name]
        except KeyError:
            known = ", ".join(map(repr, self._entries)) or "none"
            raise ValueError(f"name: no model {name!r} is registered; known: {known}") from None

    def _lease(self, entry: _Entry) -> Engine:
        with entry.loading:  # others that want the same model wait for it here
            with self._lock:
                if self._closed:
                    raise ClosedError("the model selector is closed")
                engine = entry.engine
                if engine is not None:
                    entry.users += 1
                    entry.condemned = False
                    return engine
            engine = self._load(entry)
            with self._lock:
                entry.engine = engine
                entry.users += 1
                if self._idle_seconds is not None and self._janitor is None and not self._closed:
                    self._janitor = threading.Thread(
                        target=self._unload_idle,
                        args=(self._idle_seconds,),
                        name="aimo-selector",
                        daemon=True,
                    )
                    self._janitor.start()
                return engine

    def _load(self, entry: _Entry) -> Engine:
        resident = _resident_bytes()
        began = time.perf_counter()
        engine = Engine(entry.load())
        entry.load_ms = (time.perf_counter() - began) * 1e3
        self._check_family(entry, engine)
        entry.space_id = engine.space_id
        if entry.memory_mb is None:
            own = getattr(engine.model, "memory_bytes", None)
            grown = _resident_bytes() - resident
            entry.memory_mb = (own if isinstance(own, int) and own else max(grown, 0)) / _MIB
        entry.reads = engine.max_seq_length or math.inf
        if entry.profile is None:
            entry.profile = measure(engine, self._profile_seconds)
            entry.tokens.bind(engine.token_counter, None)
            for texts in _TYPICAL_TEXTS:
                entry.tokens.learn(texts)
        logger.info("loaded model %r in %.0f ms", entry.name, entry.load_ms)
        return engine

    def _check_family(self, entry: _Entry, engine: Engine) -> None:
        for other in self._entries.values():
            if (
                other.family is not None
                and other.family == entry.family
                and other.space_id is not None
                and engine.space_id is not None
                and other.space_id != engine.space_id
            ):
                raise SpaceMismatchError(
                    f"family {entry.family!r}: {entry.name!r} makes vectors of space "
                    f"{engine.space_id!r}, {other.name!r} of {other.space_id!r}; "
                    "only variants of one model can replace each other"
                )

    def _return(self, entry: _Entry) -> None:
        with self._lock:
            entry.users -= 1
            entry.last_used = time.monotonic()
            if not entry.users and (entry.condemned or self._closed):
                self._drop(entry)
            elif not entry.users:
                self._wake.notify()

    def _drop(self, entry: _Entry) -> None:
        entry.engine = None
        entry.condemned = False
        logger.info("unloaded model %r", entry.name)

    def _unload_idle(self, idle_seconds: float) -> None:
        with self._lock:
            while not self._closed:
                now = time.monotonic()
                due: float | None = None
                for entry in self._entries.values():
                    if not entry.is_idle:
                        continue
                    left = entry.last_used + idle_seconds - now
                    if left <= 0:
                        self._drop(entry)
                    else:
                        due = left if due is None else min(due, left)
                self._wake.wait(due)


def _suits(candidate: _Candidate, request: _Request) -> bool:
    """Whether a model will do: :func:`_objection` without the words, which are rarely read."""
    entry = candidate.entry
    if request.language is not None and not entry.speaks(request.language):
        return False
    if entry.max_tokens is not None and candidate.tokens > entry.max_tokens:
        return False
    if request.min_quality is not None and entry.quality < request.min_quality:
        return False
    if request.max_memory_mb is not None and (entry.memory_mb or 0.0) > request.max_memory_mb:
        return False
    if request.max_latency_ms is None or candidate.predicted_ms == math.inf:
        return True
    return candidate.predicted_ms <= request.max_latency_ms


def _objection(candidate: _Candidate, request: _Request) -> str | None:
    """Say why a model will not do; None when it will."""
    if _suits(candidate, request):
        return None
    entry = candidate.entry
    if request.language is not None and not entry.speaks(request.language):
        return f"language {request.language!r} is not among {sorted(entry.languages or ())}"
    if entry.max_tokens is not None and candidate.tokens > entry.max_tokens:
        return f"about {candidate.tokens} tokens, it reads {entry.max_tokens}"
    if request.min_quality is not None and entry.quality < request.min_quality:
        return f"quality {entry.quality:g} is below {request.min_quality:g}"
    if request.max_memory_mb is not None and (entry.memory_mb or 0.0) > request.max_memory_mb:
        return f"takes {entry.memory_mb:.0f} MiB, allowed are {request.max_memory_mb:g}"
    loading = "" if candidate.loaded else ", loading included"
    return (
        f"would take {candidate.predicted_ms:.1f} ms{loading}, "
        f"allowed are {request.max_latency_ms:g}"
    )


def _by_latency(candidate: _Candidate) -> tuple[float, float]:
    return candidate.predicted_ms, -candidate.entry.quality


def _by_quality(candidate: _Candidate) -> tuple[bool, float, float]:
    # An unknown latency comes last: it cannot be promised.
    predicted = candidate.predicted_ms
    return predicted == math.inf, -candidate.entry.quality, predicted


def _refusal(candidates: list[_Candidate], request: _Request) -> str:
    if not candidates:
        return "no model is registered"
    reasons = (f"{c.entry.name}: {_objection(c, request)}" for c in candidates)
    return "no registered model meets the requirements; " + "; ".join(reasons)


def _resident_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def _check_positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: expected a finite number above 0, got {value}")
