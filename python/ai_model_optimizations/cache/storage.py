"""Cache files on disk: snapshots that appear whole or not at all, and journals beside them.

A store at ``path`` is a snapshot and the journals written since: ``path.journal-7`` and so on. A
checkpoint first starts a new journal, then writes the snapshot to a temporary file, then renames
it, and only then removes the journals that it replaces. The snapshot names the first journal to
replay after it, so a process killed between any two of these steps leaves files with the same
content.
"""

from __future__ import annotations

import fcntl
import os
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import BinaryIO

from ..errors import CacheFileError, ClosedError
from .file_format import END, FILE_HEADER, Damage, Frame, read_frames

# A journal that is longer than this, and than twice its snapshot, is worth a checkpoint.
_MIN_JOURNAL = 16 << 20


@dataclass
class LoadReport:
    """The outcome of reading a cache's files.

    Attributes
    ----------
    entries : number of entries now in the cache from these files
    dropped : number of entries that exceed the limits of this cache
    torn_tail : whether the last journal ends in an incomplete record, as after a kill
    damage : stretches that could not be read, by file
    """

    entries: int = 0
    dropped: int = 0
    torn_tail: bool = False
    damage: dict[str, list[Damage]] = field(default_factory=dict)

    def __str__(self) -> str:
        places = [
            f"{os.path.basename(path)}: {len(stretches)} damaged at "
            + ", ".join(f"byte {d.offset} ({d.reason}, {d.length} bytes)" for d in stretches[:5])
            for path, stretches in self.damage.items()
        ]
        return "; ".join([f"{self.entries} entries can be read", *places])


def write_snapshot(path: str, frames: Iterable[bytes]) -> int:
    """Write a temporary file, force it to disk and rename it; only the owner may read it.

    Returns
    -------
    The bytes written.
    """
    aside = f"{path}.tmp-{os.getpid()}-{threading.get_ident()}"
    try:
        with _create(aside) as file:
            file.write(FILE_HEADER)
            for frame in frames:
                file.write(frame)
            size = file.tell()
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        _remove(aside)
        raise
    _sync_folder(path)
    return size


def _create(path: str) -> BinaryIO:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    os.fchmod(descriptor, 0o600)
    return os.fdopen(descriptor, "wb", buffering=1 << 20)


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def _sync_folder(path: str) -> None:
    """Make a rename or a new file in the folder of `path` durable."""
    descriptor = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class CacheStore:
    """The files of a cache that is kept on disk; one process holds them at a time.

    Parameters
    ----------
    path : the snapshot; journals and a lock file are beside it
    fsync_every : force the journal to disk after this many records. A killed process loses no
        record for which `append` has returned; a power failure, at most this many.
    """

    def __init__(self, path: str, fsync_every: int) -> None:
        if fsync_every < 1:
            raise ValueError(f"fsync_every must be positive, got {fsync_every}")
        self.path = path
        self._fsync_every = fsync_every
        self._pid = os.getpid()
        self._lock = threading.Lock()
        #: Held while a checkpoint is written, and while the files are closed.
        self.checkpoint_lock = threading.Lock()
        self._file: int | None = None  # the journal being written; protected by _lock
        self._unsynced = 0
        self._journal_bytes = 0
        self._snapshot_bytes = os.path.getsize(path) if os.path.exists(path) else 0
        self._number = 0
        self._closed = False
        self._lock_file: int | None = self._claim()
        self._remove_leftovers()

    def _claim(self) -> int:
        descriptor = os.open(self.path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise BlockingIOError(f"{self.path} is open in another cache or process") from None
        return descriptor

    def _remove_leftovers(self) -> None:
        """Remove a killed process's temporary files; we hold the lock, so they are not in use."""
        folder, name = os.path.split(os.path.abspath(self.path))
        for other in os.listdir(folder):
            if re.fullmatch(re.escape(name) + r"\.tmp-\d+-\d+", other):
                _remove(os.path.join(folder, other))

    def _journals(self) -> dict[int, str]:
        folder, name = os.path.split(os.path.abspath(self.path))
        pattern = re.compile(re.escape(name) + r"\.journal-(\d+)")
        found = {
            int(match[1]): os.path.join(folder, other)
            for other in os.listdir(folder)
            if (match := pattern.fullmatch(other))
        }
        return dict(sorted(found.items()))

    def journals_since(self, number: int) -> list[str]:
        """Return the journals to replay after a snapshot that names `number`, in order."""
        return [path for other, path in self._journals().items() if other >= number]

    @property
    def writable(self) -> bool:
        """Whether this process may write: only the one that opened the files, not its forks.

        Raises
        ------
        ClosedError
            If the files were closed: another process may have opened them by now.
        """
        if self._closed:
            raise ClosedError(f"the cache at {self.path} is closed")
        return os.getpid() == self._pid

    def append(self, frame: bytes) -> None:
        """Write a record; once this returns, the record survives a crash of this process."""
        if not self.writable:
            return
        with self._lock:
            if self._file is None:
                raise ClosedError(f"the cache at {self.path} is closed")
            view = memoryview(frame)
            try:
                while view:
                    view = view[os.write(self._file, view) :]
            except OSError:
                # The disk is full: later records must not follow half a record.
                os.ftruncate(self._file, len(FILE_HEADER) + self._journal_bytes)
                os.lseek(self._file, 0, os.SEEK_END)
                raise
            self._journal_bytes += len(frame)
            self._unsynced += 1

    def sync_if_due(self) -> None:
        """Force the journal to disk if enough records are waiting; the cache's lock is not held."""
        if self._unsynced >= self._fsync_every:
            self.sync()

    def sync(self) -> None:
        """Force the journal to disk."""
        with self._lock:
            if self._file is not None:
                # Reset first, because records that arrive meanwhile may not be part of this sync.
                self._unsynced = 0
                os.fdatasync(self._file)

    @property
    def checkpoint_due(self) -> bool:
        """Whether the journal has outgrown the snapshot and this process may write a new one."""
        if self._closed or os.getpid() != self._pid:
            return False
        return self._journal_bytes > max(_MIN_JOURNAL, 2 * self._snapshot_bytes)

    def rotate(self) -> int:
        """Start a new journal; earlier ones become part of the next snapshot."""
        number = max([self._number, *self._journals()]) + 1
        path = f"{self.path}.journal-{number}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.fchmod(descriptor, 0o600)
        os.write(descriptor, FILE_HEADER)
        with self._lock:
            if self._file is not None:
                os.fdatasync(self._file)
                os.close(self._file)
            self._file, self._number = descriptor, number
            self._journal_bytes = self._unsynced = 0
        _sync_folder(path)
        return number

    def replace(self, frames: Iterable[bytes], number: int) -> None:
        """Write the snapshot that precedes journal `number`, and remove older journals."""
        self._snapshot_bytes = write_snapshot(self.path, frames)
        for other, path in self._journals().items():
            if other < number:
                _remove(path)

    def close(self) -> None:
        """Force the journal to disk and close the files; calling it again is harmless."""
        with self._lock:
            self._closed = True
            if self._file is not None:
                os.fdatasync(self._file)
                os.close(self._file)
                self._file = None
            if self._lock_file is not None:
                os.close(self._lock_file)
                self._lock_file = None


def snapshot_frames(path: str, report: LoadReport) -> Iterator[Frame]:
    """Yield a snapshot's undamaged frames; damage and a missing end mark go to the report."""
    ended = False
    for frame in _readable(path):
        if isinstance(frame, Damage):
            report.damage.setdefault(path, []).append(frame)
        else:
            ended = frame.kind == END
            yield frame
    if not ended and path not in report.damage:
        size = os.path.getsize(path)
        report.damage[path] = [Damage(size, 0, "the end is missing")]


def journal_frames(path: str, report: LoadReport) -> Iterator[Frame]:
    """Yield the undamaged frames of a journal.

    Damage goes to the report, except an incomplete record at the very end: that is what a kill
    leaves of a call that had not returned.
    """
    if os.path.getsize(path) < len(FILE_HEADER):
        report.torn_tail = True
        return
    waiting: Damage | None = None
    for frame in _readable(path):
        if waiting is not None:
            report.damage.setdefault(path, []).append(waiting)
            waiting = None
        if isinstance(frame, Damage):
            waiting = frame
        else:
            yield frame
    if waiting is not None and waiting.reason == "cut off":
        report.torn_tail = True
    elif waiting is not None:
        report.damage.setdefault(path, []).append(waiting)


def _readable(path: str) -> Iterator[Frame | Damage]:
    try:
        yield from read_frames(path)
    except ValueError as error:
        raise CacheFileError(str(error)) from None
