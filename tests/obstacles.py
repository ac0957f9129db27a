"""Conditions that keep a file from being written, for tests of code that writes files."""

import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def no_room_for(size: int) -> Iterator[None]:
    """Keep files from growing beyond `size` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def closed_folder() -> Iterator[Path]:
    """A folder that this process may not write to, not even as root."""
    with tempfile.TemporaryDirectory() as path:
        os.chmod(path, 0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            yield Path(path)
        finally:
            os.seteuid(user)
            os.chmod(path, 0o755)
