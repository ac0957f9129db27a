"""One copy of a model's weights in a process, however often it is loaded."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .model import EmbeddingModel

#: Held while a model is loaded: other callers that want the same model wait for it.
_loading = threading.RLock()
#: Models in use, by their files and their options.
_loaded: weakref.WeakValueDictionary[tuple[Hashable, Hashable], EmbeddingModel] = (
    weakref.WeakValueDictionary()
)


def in_use(
    files: Hashable,
    options: Hashable,
    load: Callable[[], EmbeddingModel],
    with_options: Callable[[EmbeddingModel], EmbeddingModel],
) -> EmbeddingModel:
    """Return the model in use, one that shares the weights of such a model, or a new one.

    Parameters
    ----------
    files : what determines the weights: a path, the state of its files, dtype and device
    options : the other options
    load : loads a model from the files
    with_options : returns a loaded model with the options; it may return the same object
    """
    with _loading:
        model = _loaded.get((files, options))
        if model is None:
            same = next((m for key, m in list(_loaded.items()) if key[0] == files), None)
            model = with_options(same or load())
            _loaded[(files, options)] = model
        return model


def forget_all() -> None:
    """Make the next :func:`in_use` load again, as in a new process."""
    _loaded.clear()


def _renew_lock() -> None:
    """In a forked child: another thread of the parent may have held it."""
    global _loading
    _loading = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)
