"""One interface to any model: an EmbeddingModel, a SentenceTransformer, any ``.encode``."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, cast

import numpy as np
from numpy.typing import NDArray


class Embedder(Protocol):
    """What a model must offer: ``encode`` of a list of texts, one row each."""

    def encode(self, sentences: list[str], /) -> Any:
        """Return the texts' vectors, (n, dim), as anything that NumPy can read."""


class ShapeError(ValueError):
    """The model returned something that is not one vector for each text."""


# One thread tokenizes a batch; if it has long texts, the others would wait. A model without padding
# loses nothing when the batch is cut into pieces, here of about 2 ms.
_CHARACTERS_AT_ONCE: Final = 8192

# Passed only to models that have these parameters: one call is one batch, without a progress bar.
_QUIET = {"show_progress_bar": False, "convert_to_numpy": True}


class Engine:
    """Calls a model with a batch and returns a checked float32 matrix.

    Parameters
    ----------
    model : an object with ``encode(list_of_texts)``; ``dimension``, ``space_id``,
        ``max_seq_length`` and ``count_tokens`` are used if it has them
    """

    def __init__(self, model: Embedder) -> None:
        encode = getattr(model, "encode", None)
        if not callable(encode):
            raise TypeError(
                f"model: expected an object with an encode method, got {type(model).__name__}"
            )
        if inspect.iscoroutinefunction(encode):
            raise TypeError("model: encode is a coroutine function; a plain method is expected")
        self.model = model
        self._encode = cast(Callable[..., Any], encode)
        parameters = _keyword_names(self._encode)
        self._options = {k: v for k, v in _QUIET.items() if k in parameters}
        self._takes_batch_size = "batch_size" in parameters
        #: Whether it pads nothing and any number of threads may call it at once.
        self.is_ours = _is_ours(model)
        self.dimension = _dimension_of(model)

    @property
    def space_id(self) -> str | None:
        """The space of the model's vectors, or None when the model does not say."""
        space_id = getattr(self.model, "space_id", None)
        return space_id if isinstance(space_id, str) else None

    @property
    def max_seq_length(self) -> int | None:
        """The most tokens that the model reads of one text, or None if it does not say."""
        limit = getattr(self.model, "max_seq_length", None)
        return limit if isinstance(limit, int) and limit > 0 else None

    @property
    def token_counter(self) -> Callable[[list[str]], Sequence[int]] | None:
        """The model's ``count_tokens``, or None."""
        counter = getattr(self.model, "count_tokens", None)
        return cast(Callable[[list[str]], Sequence[int]], counter) if callable(counter) else None

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        """Embed `texts` in one call of the model.

        Returns
        -------
        (len(texts), dim) float32; values are as the model gave them, NaN included

        Raises
        ------
        ShapeError
            If the model does not return one vector for each text, all of one dimension.
        Exception
            Whatever the model raises.
        """
        options: dict[str, Any] = self._options
        if self._takes_batch_size:
            options = {**options, "batch_size": _piece(texts) if self.is_ours else len(texts)}
        vectors = np.asarray(self._encode(texts, **options), dtype=np.float32)
        if vectors.ndim != 2 or vectors.shape[0] != len(texts) or vectors.shape[1] == 0:
            raise ShapeError(
                f"the model returned shape {vectors.shape} for {len(texts)} texts; "
                f"expected ({len(texts)}, dim)"
            )
        if self.dimension is None:
            self.dimension = vectors.shape[1]
        elif self.dimension != vectors.shape[1]:
            raise ShapeError(
                f"the model returned vectors of dimension {vectors.shape[1]}; "
                f"it has dimension {self.dimension}"
            )
        return vectors


def model_loader(
    model: Embedder | Callable[[], Embedder] | str | os.PathLike[str] | None, argument: str
) -> Callable[[], Embedder]:
    """Return a function that returns the model: itself, what it loads, or the one it names.

    Parameters
    ----------
    model
        A model, a function that returns one, a name or a path; the default model when None.
    argument
        The name of the user's argument, for error messages.
    """
    if model is None or isinstance(model, (str, os.PathLike)):
        return functools.partial(load_by_name, model)
    if callable(getattr(model, "encode", None)) and not isinstance(model, type):
        ready = cast(Embedder, model)
        return lambda: ready
    if callable(model):
        return model
    raise TypeError(
        f"{argument}: expected an object with an encode method, a function that returns one, a "
        f"name or a path, got {type(model).__name__}"
    )


def load_by_name(name: str | os.PathLike[str] | None = None, dtype: str | None = None) -> Embedder:
    """Load an EmbeddingModel; None takes the default model, and its default dtype."""
    from .lookup import DEFAULT_MODEL
    from .model import EmbeddingModel

    return EmbeddingModel.load(name or DEFAULT_MODEL, dtype or "auto")


def _is_ours(model: object) -> bool:
    from .model import EmbeddingModel

    return isinstance(model, EmbeddingModel)


def _piece(texts: list[str]) -> int:
    """Return how many texts one thread is to tokenize at a time."""
    characters = sum(map(len, texts))
    pieces = max(1, round(characters / _CHARACTERS_AT_ONCE))
    return -(-len(texts) // pieces)


def _keyword_names(function: Callable[..., Any]) -> frozenset[str]:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # some builtins have no signature
        return frozenset()
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return frozenset(name for name, p in parameters.items() if p.kind in by_keyword)


def _dimension_of(model: object) -> int | None:
    dimension = getattr(model, "dimension", None)
    if dimension is None:
        # sentence-transformers 6 renamed it.
        for name in ("get_embedding_dimension", "get_sentence_embedding_dimension"):
            getter = getattr(model, name, None)
            if callable(getter):
                dimension = getter()
                break
    return dimension if isinstance(dimension, int) and dimension > 0 else None
