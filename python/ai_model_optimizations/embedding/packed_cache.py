"""AIMO_CACHE_DIR: packed forms of model folders, so that the next process maps instead of packs.

A file's name is a hash of everything that its content follows from; a folder that changes gets
another. Files may be deleted at any time. Of workers that miss at the same time one packs and the
others wait for it, so that all map one file. Files are written aside and renamed: nobody reads half
of one.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

from .. import _core
from .._files import remove_leftovers
from ..errors import ModelFormatError
from .folder import ModelFolder

VARIABLE = "AIMO_CACHE_DIR"

_log = logging.getLogger("ai_model_optimizations")
_Model = TypeVar("_Model")
# Seconds that a worker waits for another one's packing; most models take less than one.
_PATIENCE: Final = 60.0


def cache_folder() -> Path | None:
    """Return the folder that ``AIMO_CACHE_DIR`` names; None when it is not set."""
    value = os.environ.get(VARIABLE)
    return Path(value).expanduser() if value else None


def packed_name(folder: ModelFolder, dtype: str, space_id: str) -> str:
    """Return the name of the packed form of this content in this dtype.

    ``space_id`` samples the weights. Size and time of the files are in the name as well, so that
    two trainings which differ only between the samples are told apart.
    """
    files = [file.stat() for file in folder.weight_files]
    content = (
        space_id,
        dtype,
        _core.encoder_layout_version(),
        [(file.st_size, file.st_mtime_ns) for file in files],
        folder.max_seq_length,
        sorted(folder.architecture.sizes.items()),
    )
    digest = hashlib.sha256(repr(content).encode()).hexdigest()[:32]
    return f"{folder.path.resolve().name}-{dtype}-{digest}.safetensors"


def load_through_cache(
    folder: ModelFolder,
    dtype: str,
    space_id: str,
    *,
    pack: Callable[[], _Model],
    write: Callable[[_Model, Path], object],
    read: Callable[[Path], _Model],
) -> _Model:
    """Return ``read`` of the folder's packed form, made by ``pack`` and ``write`` when missing.

    Nothing about the cache makes loading fail: what is damaged is logged and replaced, what cannot
    be written is logged and done without.
    """
    cache = cache_folder()
    if cache is None:
        return pack()
    path = cache / packed_name(folder, dtype, space_id)
    found = _read(path, read)
    if found is not None:
        return found
    with _turn(cache):
        found = _read(path, read)
        if found is not None:
            return found
        model = pack()
        try:
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            remove_leftovers(cache)
            write(model, path)
            return read(path)  # the packed copy can go: this process shares the pages as well
        except (ModelFormatError, OSError) as error:
            _log.warning("%s: the packed model is not kept: %s", VARIABLE, error)
            return model


def _read(path: Path, read: Callable[[Path], _Model]) -> _Model | None:
    """The packed model, None when there is none that can be read."""
    if not path.exists():
        return None
    try:
        return read(path)
    except (ModelFormatError, OSError) as error:
        _log.warning("%s: packing the model again: %s", VARIABLE, error)
        return None


@contextmanager
def _turn(cache: Path) -> Iterator[None]:
    """Wait until no other process packs into `cache`; one that takes too long is not waited for."""
    with ExitStack() as stack:
        with suppress(OSError):
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(cache, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)  # lets the lock go
            deadline = time.monotonic() + _PATIENCE
            while not _locked(descriptor) and time.monotonic() < deadline:
                time.sleep(0.02)
        yield


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
