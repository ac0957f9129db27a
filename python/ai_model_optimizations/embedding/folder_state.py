"""Detects whether a model's files change while they are read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from ..errors import ModelFormatError

#: Endings of the files that a model is read from.
_READ = (".json", ".safetensors")


class FolderState(NamedTuple):
    """Name, size, modification time and inode of every file that may be read."""

    files: tuple[tuple[str, int, int, int], ...]

    @classmethod
    def of(cls, path: Path) -> FolderState:
        """Look at a folder and the folders in it."""
        found: list[tuple[str, int, int, int]] = []
        _collect(path, "", found)
        return cls(tuple(sorted(found)))

    def check_unchanged(self, path: Path) -> None:
        """Raise an error if the folder has changed.

        Raises
        ------
        ModelFormatError
            Naming the first file that was changed, added or removed.
        """
        now = FolderState.of(path)
        if now != self:
            names = sorted({entry[0] for entry in set(self.files) ^ set(now.files)})
            raise ModelFormatError(
                f"{path / names[0]}: the file changed while the model was read; load it again"
            )


def _collect(path: Path, prefix: str, found: list[tuple[str, int, int, int]]) -> None:
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir():
                    if not prefix:
                        _collect(path / entry.name, f"{entry.name}/", found)
                elif entry.name.endswith(_READ):
                    status = entry.stat()
                    identity = (status.st_size, status.st_mtime_ns, status.st_ino)
                    found.append((prefix + entry.name, *identity))
    except OSError:
        # Gone or unreadable: the code that reads it will raise an error that names it.
        return
