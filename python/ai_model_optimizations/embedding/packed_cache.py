"""AIMO_CACHE_DIR: packed forms of model folders, so that the next process maps instead of packs.

A file's name is a hash of everything that determines its content; a folder that changes gets
another file. Files may be deleted at any time. When several workers miss at the same time, one
packs and the others wait for it, so that all map one file. Files are written under a temporary name
and renamed, so nobody reads half of one.
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
# Seconds that a worker waits for another to pack; most models take less than one.
_PATIENCE: Final = 60.0


def cache_folder() -> Path | None:
    """Return the folder that ``AIMO_CACHE_DIR`` names; None when it is not set."""
    value = os.environ.get(VARIABLE)
    return Path(value).expanduser() if value else None


def packed_name(folder: ModelFolder, dtype: str, space_id: str) -> str:
    """Return the name of the packed form of this content in this dtype.

    ``space_id`` samples the weights. Size and modification time of the files are part of the name
    as well, to distinguish models that differ only between the samples.
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
    """Return ``read`` of the folder's packed form, made by ``pack`` and ``write`` if missing.

    The cache never makes loading fail: a damaged file is logged and replaced; if a file cannot be
    written, that is logged and the model is loaded without the cache.
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
            return read(path)  # instead of the packed copy, so that this process shares pages too
        except (ModelFormatError, OSError) as error:
            _log.warning("%s: the packed model is not kept: %s", VARIABLE, error)
            return model


def _read(path: Path, read: Callable[[Path], _Model]) -> _Model | None:
    """Return the packed model, or None if there is none that can be read."""
    if not path.exists():
        return None
    try:
        return read(path)
    except (ModelFormatError, OSError) as error:
        _log.warning("%s: packing the model again: %s", VARIABLE, error)
        return None


@contextmanager
def _turn(cache: Path) -> Iterator[None]:
    """Wait until no other process packs into `cache`, but not for one that takes too long."""
    with ExitStack() as stack:
        with suppress(OSError):
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(cache, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)  # releases the lock
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
