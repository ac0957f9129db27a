"""OptimizedContentManager: caches and batches before a content manager that exists already.

    manager = OptimizedContentManager.wrap(ContentManager("content"))   # yours, and faster
    manager = OptimizedContentManager("content")                        # ours, from the same file
    response, source = await manager.find_response_optimized("How do I reset my password?")

The parts are in the folder ``content``.
"""

from __future__ import annotations

import functools
import inspect
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

from .cache import Agreement
from .cache.contexts import Context
from .cache.guards import GuardSpec
from .content.answers import Answer, AnswerCaches, Shareable
from .content.embedder import EmbedderLike, embedder_key, shared_embedder
from .content.engine import AnswerEngine
from .content.interface import Optimized
from .content.matcher import ContentMatcher, content_key
from .content.options import AGREEMENT, Options
from .content.static_content import content_file
from .content.wrapped import WrappedPlain

__all__ = [
    "OptimizedContentManager",
    "OptimizedContentMixin",
    "create_optimized_content_manager",
    "find_optimized_response",
    "process_batch_queries",
]

#: Methods of a wrapped manager after which no answer of before may be given.
_FORGETTING: Final = ("reload_content", "clear_cache")


class OptimizedContentManager(Optimized):
    """Answers from static content: the same text, a keyword, the meaning, else a default.

    Parameters
    ----------
    content_dir : folder of ``static_responses.json``, or a ``.json`` file. When it changes, the new
        content answers as soon as it is read and embedded; a broken one is logged and not used.
    embedder : an object with ``encode(texts)``, a function that returns one, a name or path, or a
        BatchEmbeddingProcessor; the default model when None. Names are looked for on this machine
        alone. It is loaded by the first message that needs it; see `warmup`.
    similarity_threshold : of wrapped managers: the cosine from which another message's answer is
        given. The content's own ones are calibrated on its texts, unless its ``settings`` have
        a ``similarity_threshold``.
    ttl : seconds that a cached answer lives; None for ever
    max_size : most cached answers
    guard, agreement, mode : as in `SmartCache`; "shadow" counts what would be answered and answers
        nothing. By default cached answers are weighed together: a content's answers repeat.
    timeout : seconds without a vector, or an answer, after which a caller waits no longer
    loop_budget : seconds that `find_response` blocks a running event loop for a vector, at most

    Raises
    ------
    OSError
        If the content file cannot be read.
    ContentFileError
        If it is not UTF-8, not JSON, or of another shape; the message has file, line and key.

    Notes
    -----
    Managers of a process share the model, and caches where all arguments are equal.
    ``AIMO_DISABLE=cache`` turns the caches off.
    """

    _aimo_engine: AnswerEngine
    _aimo_wrapped: Any

    def __init__(
        self,
        content_dir: str | os.PathLike[str] = "content",
        *,
        embedder: EmbedderLike = None,
        similarity_threshold: float = 0.85,
        ttl: float | None = 3600.0,
        max_size: int = 10_000,
        guard: GuardSpec = "auto",
        agreement: Agreement | None = AGREEMENT,
        mode: Literal["serve", "shadow"] = "serve",
        timeout: float = 30.0,
        loop_budget: float = 0.25,
    ) -> None:
        options = Options(
            similarity_threshold, ttl, max_size, guard, agreement, mode, timeout, loop_budget
        )
        shared = shared_embedder(embedder, timeout)
        path = content_file(content_dir)
        key = (content_key(path), embedder_key(embedder, timeout), options.key)
        with _sharing:
            matcher = _matchers.get(key)
            if matcher is None:
                matcher = _matchers[key] = ContentMatcher(path, shared, options.caches())
        self._set("content_dir", content_dir)
        self._set("_aimo_wrapped", None)
        engine = AnswerEngine(
            matcher, matcher.caches, shared, timeout=timeout, loop_budget=loop_budget
        )
        self._set("_aimo_engine", engine)

    @classmethod
    def wrap(
        cls,
        existing_manager: Any,
        *,
        embedder: EmbedderLike = None,
        shareable: Shareable | None = None,
        share: str | None = None,
        **options: Any,
    ) -> OptimizedContentManager:
        """Put the caches before a manager with ``find_response(user_message)``.

        Whatever the result does not have itself is the wrapped manager's: attributes, methods, and
        what is set. After its ``reload_content`` or ``clear_cache``, through the result, no answer
        of before is given.

        Parameters
        ----------
        existing_manager : its ``find_response(message) -> (response, source)`` is a plain method
        embedder : as in the constructor
        shareable : called with (message, response, source); False keeps an answer from users who
            said it differently. Answers whose source says that nothing matched, and answers that
            repeat the message, are never given to others.
        share : managers wrapped under the same name share cached answers: say so when they give
            the same ones. By default only wraps of one object do.
        **options : the keyword arguments of the constructor

        Raises
        ------
        TypeError
            If the manager has no such method, or an option is unknown.
        """
        if isinstance(existing_manager, OptimizedContentManager):
            return existing_manager
        find_response = getattr(existing_manager, "find_response", None)
        if not callable(find_response):
            raise TypeError(
                "existing_manager: expected an object with find_response(user_message), got "
                f"{type(existing_manager).__name__}"
            )
        self = cls.__new__(cls)
        engine = _wrapping_engine(
            existing_manager, find_response, embedder, shareable, share, Options(**options)
        )
        self._set("_aimo_wrapped", existing_manager)
        self._set("_aimo_engine", engine)
        return self

    @property
    def _engine(self) -> AnswerEngine:
        return self._aimo_engine

    def find_response(self, user_message: str, context: Context = "") -> Answer:
        """Answer a message; for callers that cannot await.

        It may be called in a coroutine too: it then embeds nothing but this text and blocks the
        loop no longer than `loop_budget` for it. `find_response_optimized` does not block at all.
        """
        return self._engine.find(user_message, context)

    @property
    def wrapped(self) -> Any:
        """The wrapped manager; None when this one stands by itself."""
        return self._aimo_wrapped

    def reload_content(self) -> Any:
        """Read the content anew now; a broken file raises and changes nothing."""
        if self._aimo_wrapped is not None:
            return _forgetting(self._aimo_wrapped.reload_content, self._engine.caches)()
        self._matcher().reload()
        return None

    def _base_stats(self) -> dict[str, Any]:
        if self._aimo_wrapped is not None:
            return _stats_of(self._aimo_wrapped)
        matcher = self._matcher()
        return {
            "total_responses": len(matcher.content.responses),
            "total_keywords": sum(len(entry.keywords) for entry in matcher.content.entries),
            "content_reloads": matcher.reloads,
            "content_reload_errors": matcher.reload_errors,
        }

    def _matcher(self) -> ContentMatcher:
        plain = self._engine.plain
        assert isinstance(plain, ContentMatcher)
        return plain

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_aimo_"):  # not set yet: copying and pickling ask for such
            raise AttributeError(name)
        wrapped = self._aimo_wrapped
        if wrapped is None:
            if name in ("static_responses", "categories", "settings"):
                content = self._matcher().content
                return content.responses if name == "static_responses" else getattr(content, name)
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        value = getattr(wrapped, name)
        if name in _FORGETTING and callable(value):
            return _forgetting(value, self._engine.caches)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        wrapped = self.__dict__.get("_aimo_wrapped")
        if wrapped is None or name.startswith("_aimo_") or hasattr(type(self), name):
            object.__setattr__(self, name, value)
        else:
            setattr(wrapped, name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(self._aimo_wrapped or ())})

    def __repr__(self) -> str:
        what = self._aimo_wrapped if self._aimo_wrapped is not None else str(self._matcher().path)
        return f"OptimizedContentManager({what!r})"


class OptimizedContentMixin(Optimized):
    """Puts the caches into a subclass of a content manager.

        class FastManager(OptimizedContentMixin, ContentManager):
            optimization_options = {"similarity_threshold": 0.9}

    ``find_response`` of the class that stands behind it computes what is not cached.
    """

    #: Keyword arguments of `OptimizedContentManager.wrap`.
    optimization_options: Mapping[str, Any] = {}

    @property
    def _engine(self) -> AnswerEngine:
        engine: AnswerEngine | None = self.__dict__.get("_aimo_engine")
        if engine is None:
            with _sharing:
                engine = self.__dict__.get("_aimo_engine")
                if engine is None:
                    engine = self.__dict__["_aimo_engine"] = self._new_engine()
        return engine

    def _new_engine(self) -> AnswerEngine:
        given = dict(self.optimization_options)
        embedder, shareable, share = (
            given.pop(name, None) for name in ("embedder", "shareable", "share")
        )
        behind = super().find_response  # type: ignore[misc]
        return _wrapping_engine(self, behind, embedder, shareable, share, Options(**given))

    def find_response(self, user_message: str, context: Context = "") -> Answer:
        """As `OptimizedContentManager.find_response`."""
        return self._engine.find(user_message, context)

    def reload_content(self, *args: Any, **kwargs: Any) -> Any:
        """The manager's own, if it has one, after which no answer of before is given."""
        own = getattr(super(), "reload_content", _nothing)
        return _forgetting(own, self._engine.caches)(*args, **kwargs)

    def clear_cache(self, *args: Any, **kwargs: Any) -> Any:
        """The manager's own, if it has one, and ours."""
        own = getattr(super(), "clear_cache", _nothing)
        return _forgetting(own, self._engine.caches)(*args, **kwargs)

    def _base_stats(self) -> dict[str, Any]:
        # After Optimized in the method resolution order: its own get_stats leads back here.
        get_stats = getattr(super(Optimized, self), "get_stats", None)
        found = get_stats() if callable(get_stats) else self.__dict__.get("stats")
        return dict(found) if isinstance(found, Mapping) else {}


# ---- sharing ----

_sharing = threading.RLock()
_matchers: weakref.WeakValueDictionary[tuple[Any, ...], ContentMatcher] = (
    weakref.WeakValueDictionary()
)
_caches: weakref.WeakValueDictionary[tuple[Any, ...], AnswerCaches] = weakref.WeakValueDictionary()
_managers: dict[str, OptimizedContentManager] = {}


def _renew_lock() -> None:
    global _sharing
    _sharing = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)


def _wrapping_engine(
    owner: Any,
    find_response: Callable[[str], Any],
    embedder: EmbedderLike,
    shareable: Shareable | None,
    share: str | None,
    options: Options,
) -> AnswerEngine:
    shared = shared_embedder(embedder, options.timeout)
    name = ("name", share) if share is not None else ("object", id(owner))
    key = (name, embedder_key(embedder, options.timeout), options.key)
    with _sharing:
        caches = _caches.get(key)
        if caches is None:
            caches = _caches[key] = options.caches()
    plain = WrappedPlain(find_response, owner, caches, shareable, options.loop_budget)
    return AnswerEngine(
        plain, caches, shared, timeout=options.timeout, loop_budget=options.loop_budget
    )


def _forgetting(method: Callable[..., Any], caches: AnswerCaches) -> Callable[..., Any]:
    """A manager's method, after which the caches are empty, whether it failed or not."""
    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            try:
                return await method(*args, **kwargs)
            finally:
                caches.clear()

        return call_async

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        finally:
            caches.clear()

    return call


def _nothing(*args: Any, **kwargs: Any) -> None:
    """What a manager does that has no method for it."""


def _stats_of(manager: Any) -> dict[str, Any]:
    """A manager's figures: what ``get_stats()`` returns, else its ``stats``, else nothing."""
    get_stats = getattr(manager, "get_stats", None)
    found = get_stats() if callable(get_stats) else getattr(manager, "stats", None)
    return dict(found) if isinstance(found, Mapping) else {}


# ---- module functions ----


def create_optimized_content_manager(
    content_dir: str | os.PathLike[str] = "content", **options: Any
) -> OptimizedContentManager:
    """Make an `OptimizedContentManager`; `options` are its keyword arguments."""
    return OptimizedContentManager(content_dir, **options)


def _manager_of(content_dir: str | os.PathLike[str]) -> OptimizedContentManager:
    """The process's manager of a content folder, for the functions below."""
    key = content_key(content_file(content_dir))
    with _sharing:
        manager = _managers.get(key)
        if manager is None:
            manager = _managers[key] = OptimizedContentManager(content_dir)
        return manager


async def find_optimized_response(
    user_message: str,
    quality_priority: bool = False,
    context: Context = "",
    *,
    manager: OptimizedContentManager | None = None,
    content_dir: str | os.PathLike[str] = "content",
) -> Answer:
    """Answer a message with `manager`, or with the process's one for `content_dir`."""
    manager = manager or _manager_of(content_dir)
    return await manager.find_response_optimized(user_message, quality_priority, context)


async def process_batch_queries(
    messages: Sequence[str],
    quality_priority: bool = False,
    context: Context = "",
    *,
    manager: OptimizedContentManager | None = None,
    content_dir: str | os.PathLike[str] = "content",
) -> list[Answer]:
    """Answer messages with `manager`, or with the process's one for `content_dir`."""
    manager = manager or _manager_of(content_dir)
    return await manager.process_batch_queries(messages, quality_priority, context)
