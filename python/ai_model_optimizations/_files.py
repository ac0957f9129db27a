"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

#: What a file is called while it is written, and how long one must lie still to be a leftover.
_ASIDE = re.compile(r".+\.tmp-\d+-\d+")
_LEFTOVER_SECONDS = 3600.0


def check_writable(path: Path) -> None:
    """Raise OSError when a file cannot be written to ``path``: before work whose result goes there.

    Writing may fail all the same.
    """
    if path.is_dir():
        problem = errno.EISDIR
    elif not path.parent.is_dir():
        problem = errno.ENOENT
    elif not os.access(path if path.exists() else path.parent, os.W_OK):
        problem = errno.EACCES
    else:
        return
    raise OSError(problem, os.strerror(problem), str(path))


def given_path(path: str | os.PathLike[str], name: str) -> Path:
    """Return a path that a caller gave; raise ValueError for "", which Path takes for "."."""
    if not os.fspath(path):
        raise ValueError(f"{name}: expected a path, got an empty string")
    return Path(path).expanduser()


def is_aside(name: str, file: str) -> bool:
    """Whether ``name`` is what ``file`` is called while :func:`write_whole` writes it."""
    return name.startswith(f"{file}.") and _ASIDE.fullmatch(name) is not None


def write_whole(path: Path, chunks: Iterable[Any], *, mode: int = 0o666) -> int:
    """Write a file aside, force it to disk and rename it.

    Parameters
    ----------
    chunks : bytes-like objects; they are written as they come and never held together
    mode : permissions, from which the process's umask is taken

    Returns
    -------
    The bytes written.

    Raises
    ------
    OSError
        Names ``path``; nothing of the file is left then, and an older one is untouched.
    """
    aside = f"{path}.tmp-{os.getpid()}-{threading.get_ident()}"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        with os.fdopen(os.open(aside, flags, mode), "wb", buffering=1 << 16) as file:
            for chunk in chunks:
                file.write(chunk)
            size = file.tell()
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(aside)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    sync_folder(path.parent)
    return size


def sync_folder(folder: Path) -> None:
    """Make new names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes were writing aside in ``folder``."""
    for entry in folder.iterdir():
        if _ASIDE.fullmatch(entry.name):
            with suppress(OSError):
                if time.time() - entry.stat().st_mtime > _LEFTOVER_SECONDS:
                    entry.unlink()
