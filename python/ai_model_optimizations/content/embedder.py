"""Shares one model among all managers of a process that name the same one.

Coroutines and threads go through a `BatchEmbeddingProcessor`. A plain call inside a running event
loop must not wait for another caller's batch: it embeds its one text at once, within a time limit.
"""

from __future__ import annotations

import concurrent.futures
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..embedding import BatchEmbeddingProcessor, EmbeddingModel
from ..embedding.engine import Embedder, model_loader
from ..embedding.lookup import DEFAULT_MODEL, find_model
from ..errors import UnsupportedError
from .serial_executor import SerialExecutor

#: What managers accept as a model: a model, a function that returns one, a name, path or processor.
EmbedderLike: TypeAlias = (
    Embedder | Callable[[], Embedder] | str | os.PathLike[str] | BatchEmbeddingProcessor | None
)
# A model that failed to load is not tried again by each request.
_RETRY_SECONDS: Final = 30.0


class _Loader:
    """Loads a model once; a failure is remembered for a while.

    Separate from `SharedEmbedder`, because the processor's threads hold it as long as they live.
    """

    def __init__(self, load: Callable[[], Embedder]) -> None:
        self._load = load
        self._loading = threading.Lock()
        self._failed: tuple[float, Exception] | None = None
        self.model: Embedder | None = None
        _loaders.add(self)

    def __call__(self) -> Embedder:
        with self._loading:
            if self.model is None:
                if self._failed is not None and time.monotonic() < self._failed[0]:
                    reason = self._failed[1]
                    raise UnsupportedError(
                        f"the model could not be loaded: {type(reason).__name__}: {reason}"
                    )
                try:
                    self.model = self._load()
                except Exception as error:
                    self._failed = (time.monotonic() + _RETRY_SECONDS, error)
                    raise
            return self.model


class SharedEmbedder:
    """Embeds texts in every way that a manager needs.

    Parameters
    ----------
    source : the model; the default one when None. Names are looked up on this machine only: a
        request must not wait for a download.
    timeout : seconds without a vector after which a caller gets TimeoutError
    """

    def __init__(self, source: EmbedderLike, timeout: float) -> None:
        self.source = source
        self._executor = SerialExecutor("aimo-content-embed")
        self._loader: _Loader | None = None
        if isinstance(source, BatchEmbeddingProcessor):
            self.processor = source
            return
        if source is None or isinstance(source, (str, os.PathLike)):
            name = source or DEFAULT_MODEL
            self._loader = _Loader(lambda: EmbeddingModel.load(find_model(name, download=False)))
        else:
            self._loader = _Loader(model_loader(source, "embedder"))
        self.processor = BatchEmbeddingProcessor(model=self._loader, timeout=timeout)

    @property
    def model(self) -> Embedder | None:
        """The model; None before it is loaded, or if it belongs to a processor."""
        return None if self._loader is None else self._loader.model

    @property
    def ready(self) -> bool:
        """Whether the model is loaded."""
        return self.model is not None or self.processor.ready()

    @property
    def space_id(self) -> str | None:
        """The space of the vectors; None while it is unknown."""
        own = getattr(self.model, "space_id", None)
        return own if isinstance(own, str) else self.processor.space_id

    async def embed(self, text: str) -> NDArray[np.float32]:
        """Embed one text together with those of other coroutines; (dim,) float32."""
        return await self.processor.embed(text)

    async def embed_many(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts as one batch; (n, dim) float32."""
        return await self.processor.process_batch(texts)

    def embed_sync(self, text: str) -> NDArray[np.float32]:
        """As `embed`, for a thread without an event loop."""
        return self.processor.embed_sync(text)

    def embed_within(self, text: str, seconds: float) -> NDArray[np.float32]:
        """Embed one text for a caller inside an event loop, which waits `seconds` at most.

        Raises
        ------
        TimeoutError
            If the vector is not ready in time; at once, while another call hangs.
        """
        if self.ready:
            # One text takes our model milliseconds and waits for nobody; an executor would only add
            # thread switches.
            vector = self.processor.embed_here(text)
            if vector is not None:
                return vector
        if self._executor.busy_for() > seconds:
            raise TimeoutError("an earlier call of the model has not returned")
        future = self._executor.submit(lambda: self._embed_one(text))
        try:
            return future.result(seconds)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise TimeoutError(f"no vector within {seconds} s") from None

    def _embed_one(self, text: str) -> NDArray[np.float32]:
        vector = self.processor.embed_here(text)
        if vector is None:  # another library's tokenizer may forbid a second thread
            vector = self.processor.embed_sync(text, priority="high")
        return vector


_sharing = threading.Lock()
_loaders: weakref.WeakSet[_Loader] = weakref.WeakSet()
_embedders: weakref.WeakValueDictionary[tuple[Any, ...], SharedEmbedder] = (
    weakref.WeakValueDictionary()
)


def shared_embedder(source: EmbedderLike, timeout: float) -> SharedEmbedder:
    """Return the process's embedder for a model, the same for the same name or object."""
    key = embedder_key(source, timeout)
    with _sharing:
        found = _embedders.get(key)
        if found is None:
            found = _embedders[key] = SharedEmbedder(source, timeout)
        return found


def embedder_key(source: EmbedderLike, timeout: float) -> tuple[Any, ...]:
    """Return the key under which an embedder is shared; objects are compared by identity."""
    if source is None or isinstance(source, (str, os.PathLike)):
        return ("name", str(source or DEFAULT_MODEL), timeout)
    return ("object", id(source), timeout)


def _after_fork_in_child() -> None:
    global _sharing
    _sharing = threading.Lock()
    for loader in list(_loaders):
        loader._loading = threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
