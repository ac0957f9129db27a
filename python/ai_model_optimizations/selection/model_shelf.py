"""The registered models: loaded once however many ask, unloaded only when nobody uses them."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Final

from ..embedding.engine import Embedder, Engine
from ..embedding.token_estimate import TokenEstimator
from ..errors import ClosedError, SpaceMismatchError
from .profile import LatencyProfile, measure

logger = logging.getLogger("ai_model_optimizations")

_MIB: Final = 2**20
# Texts that teach a model's rate of tokens to characters when it is loaded.
_TYPICAL_TEXTS: Final = (
    ["How do I reset the password of my account?", "The order has not arrived yet, where is it?"],
    ["Şifremi nasıl değiştirebilirim?", "Siparişim henüz ulaşmadı, şu an nerede?"],
)

_shelves: weakref.WeakSet[ModelShelf] = weakref.WeakSet()


class Entry:
    """A registered model. Protected by the shelf's lock, but for `loading`."""

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
        """Whether it is registered for a language, or for any."""
        return self.languages is None or language in self.languages

    @property
    def is_idle(self) -> bool:
        """Whether it is loaded and could be unloaded now."""
        return self.engine is not None and not self.users and not self.pinned


class ModelShelf:
    """Lends the registered models and unloads idle ones.

    Parameters
    ----------
    idle_seconds : unload a model that nobody has used for this long; None keeps it
    profile_seconds : time for measuring a model when it is first loaded
    """

    def __init__(self, idle_seconds: float | None, profile_seconds: float) -> None:
        self._idle_seconds = idle_seconds
        self._profile_seconds = profile_seconds
        self._closed = False
        # Replaced, never changed: readers take no lock.
        self.entries: dict[str, Entry] = {}
        self.renew_locks()
        _shelves.add(self)

    def renew_locks(self) -> None:
        """Renew locks in a forked child, where the threads that hold them do not exist."""
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._janitor: threading.Thread | None = None
        for entry in self.entries.values():
            entry.loading = threading.Lock()

    def add(self, entry: Entry) -> None:
        """Register a model; ValueError if its name is taken."""
        with self._lock:
            if self._closed:
                raise ClosedError("the model selector is closed")
            if entry.name in self.entries:
                raise ValueError(f"name: {entry.name!r} is registered already")
            self.entries = {**self.entries, entry.name: entry}

    def entry(self, name: str) -> Entry:
        """Return the model of a name; ValueError if there is none."""
        try:
            return self.entries[name]
        except KeyError:
            known = ", ".join(map(repr, self.entries)) or "none"
            raise ValueError(f"name: no model {name!r} is registered; known: {known}") from None

    def lease(self, entry: Entry) -> Engine:
        """Return the model, loaded if need be; it stays until :meth:`give_back`."""
        with entry.loading:  # others that want the same model wait for it here
            with self._lock:
                if self._closed:
                    raise ClosedError("the model selector is closed")
                engine = entry.engine
                if engine is not None:
                    entry.users += 1
                    entry.condemned = False
                    self._start_janitor()
                    return engine
            engine = self._load(entry)
            with self._lock:
                self._check_family(entry, engine)
                entry.space_id = engine.space_id
                entry.engine = engine
                entry.users += 1
                self._start_janitor()
                return engine

    def _start_janitor(self) -> None:
        """Start the thread that unloads idle models, if one is wanted and there is none yet."""
        if self._idle_seconds is None or self._janitor is not None or self._closed:
            return
        self._janitor = threading.Thread(
            target=self._unload_idle,
            args=(self._idle_seconds,),
            name="aimo-selector",
            daemon=True,
        )
        self._janitor.start()

    def _load(self, entry: Entry) -> Engine:
        resident = _resident_bytes()
        began = time.perf_counter()
        engine = Engine(entry.load())
        entry.load_ms = (time.perf_counter() - began) * 1e3
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

    def _check_family(self, entry: Entry, engine: Engine) -> None:
        for other in self.entries.values():
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

    def give_back(self, entry: Entry) -> None:
        """End a lease."""
        with self._lock:
            entry.users -= 1
            entry.last_used = time.monotonic()
            if not entry.users and (entry.condemned or self._closed):
                self._drop(entry)
            elif not entry.users:
                self._wake.notify()

    def _drop(self, entry: Entry) -> None:
        entry.engine = None
        entry.condemned = False
        logger.info("unloaded model %r", entry.name)

    def _unload_idle(self, idle_seconds: float) -> None:
        with self._lock:
            while not self._closed:
                now = time.monotonic()
                due: float | None = None
                for entry in self.entries.values():
                    if not entry.is_idle:
                        continue
                    left = entry.last_used + idle_seconds - now
                    if left <= 0:
                        self._drop(entry)
                    else:
                        due = left if due is None else min(due, left)
                self._wake.wait(due)

    def unload(self, name: str) -> bool:
        """Unload a model; one in use is unloaded when its last user is done.

        False if it is not loaded, or was registered as a model object, which belongs to its owner.
        """
        entry = self.entry(name)
        with self._lock:
            if entry.engine is None or entry.pinned:
                return False
            if entry.users:
                entry.condemned = True
            else:
                self._drop(entry)
        return True

    def release_idle(self) -> list[str]:
        """Unload every model that nobody uses now; returns their names."""
        with self._lock:
            idle = [entry for entry in self.entries.values() if entry.is_idle]
            for entry in idle:
                self._drop(entry)
        return [entry.name for entry in idle]

    def close(self) -> None:
        """Unload idle models now and the others when they are returned; lend no more."""
        with self._lock:
            self._closed = True
            for entry in self.entries.values():
                if entry.users:
                    entry.condemned = True
                elif entry.engine is not None:
                    self._drop(entry)
            self._wake.notify_all()
            janitor = self._janitor
        if janitor is not None:
            janitor.join()


def _resident_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def _renew_locks_after_fork() -> None:
    for shelf in list(_shelves):
        shelf.renew_locks()


os.register_at_fork(after_in_child=_renew_locks_after_fork)
