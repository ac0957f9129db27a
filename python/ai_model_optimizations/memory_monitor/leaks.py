"""Memory that is never released: cycles, large objects, open resources, steady growth.

Each answer comes from one walk in C that runs no Python code and calls no object's methods. A
service may hold objects whose comparison raises (``functools.cmp_to_key`` makes such objects, and
sympy keeps one), whose ``__class__`` lies, or whose ``repr`` copies a tensor off the device: none
of that is called. The walk holds the GIL, about 0.15 s for a million objects, so these methods are
for a debug page or a shell, and the monitor's thread never calls them.
"""

from __future__ import annotations

import _socket
import io
import os
import resource
import select
import socket
import stat
import sys
from typing import Any

from .. import _core
from .judge import LeakEvent
from .limits import MIB, checked_threshold
from .monitor import shared_monitor
from .snapshot import megabytes

#: No object is larger: nothing is listed.
_NOTHING_LARGE = sys.maxsize


class MemoryLeakDetector:
    """Looks for memory and resources that a process keeps by mistake. Holds no state."""

    def check_circular_references(self, limit: int = 50) -> list[dict[str, Any]]:
        """Group the reference cycles of the heap by the types that form them.

        An unreachable cycle stays until the garbage collector runs, or forever if that is off. A
        reachable one will do so once it is dropped. Classes and modules are cycles by construction,
        so reachable cycles that contain a class or a module are left out.

        Parameters
        ----------
        limit : most groups to return

        Returns
        -------
        Unreachable groups first, then by size: ``types`` (name to count in one cycle), ``cycles``
        (how many are alike), ``objects``, ``size_mb``, ``reachable``.
        """
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ValueError(f"limit must be a positive int, got {limit!r}")
        _, names, cycles = _core.heap_cycles()
        groups: dict[tuple[bool, tuple[tuple[int, int], ...]], list[int]] = {}
        for reachable, size, counts in cycles:
            group = groups.setdefault((reachable, tuple(sorted(counts.items()))), [0, 0])
            group[0] += 1
            group[1] += size
        order = sorted(groups.items(), key=lambda item: (item[0][0], -item[1][1]))
        return [
            {
                "types": {names[number]: count for number, count in counts},
                "cycles": alike,
                "objects": alike * sum(count for _, count in counts),
                "size_mb": round(size / MIB, 4),
                "reachable": reachable,
            }
            for (reachable, counts), (alike, size) in order[:limit]
        ]

    def count_unreachable_objects(self) -> int:
        """Return how many objects are waiting for the garbage collector."""
        return int(_core.heap_cycles()[0])

    def analyze_large_objects(self, threshold_mb: float = 10.0) -> list[dict[str, Any]]:
        """List single objects of at least `threshold_mb`, the largest first.

        An object's size is its own block, plus the table of an exact list, dict, set or bytearray,
        or the data that a numpy array owns; objects that it refers to are counted on their own.
        Objects that only a running function's local variable or C code holds are not seen.
        """
        least = checked_threshold(threshold_mb, "threshold_mb") * MIB
        least = int(min(max(1.0, least), sys.maxsize))
        *_, large, _ = _core.heap_summary((), least)
        return [
            {"type": name, "size_mb": megabytes(size)}
            for name, size in sorted(large, key=lambda item: -item[1])
        ]

    def check_unclosed_resources(self) -> list[dict[str, Any]]:
        """List the descriptors that this process has open, and the Python object that holds each.

        Returns
        -------
        One entry per descriptor: ``fd``, ``kind`` (file, socket, pipe, device, directory, other),
        ``target`` (path or kernel object), ``owner`` (type of the Python object, or None when C
        code or nothing holds it).
        """
        owners = _descriptor_owners()
        found = []
        for fd in _open_descriptors():
            try:
                kind, target = _kind(fd), os.readlink(f"/proc/self/fd/{fd}")
            except OSError:  # closed meanwhile
                continue
            found.append({"fd": fd, "kind": kind, "target": target, "owner": owners.get(fd)})
        return found

    def descriptor_limit(self) -> int | None:
        """Return how many descriptors the process may open; None when there is no limit."""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return None if limit == resource.RLIM_INFINITY else limit

    def growth(self) -> LeakEvent | None:
        """Return the steady growth that the monitor sees now, with the growing sites, or None."""
        return shared_monitor().leak


def _open_descriptors() -> list[int]:
    try:
        return sorted(int(name) for name in os.listdir("/proc/self/fd"))
    except OSError:
        return []


_KINDS = (
    (stat.S_ISREG, "file"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISFIFO, "pipe"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
    (stat.S_ISDIR, "directory"),
)


def _kind(fd: int) -> str:
    mode = os.fstat(fd).st_mode
    return next((name for matches, name in _KINDS if matches(mode)), "other")


def _descriptor_owners() -> dict[int, str]:
    """Map descriptors to type names, for objects of exactly the types whose C method tells."""
    methods: dict[type, Any] = {
        io.FileIO: io.FileIO.fileno,
        socket.socket: _socket.socket.fileno,
        _socket.socket: _socket.socket.fileno,
    }
    if hasattr(select, "epoll"):
        methods[select.epoll] = select.epoll.fileno
    ssl = sys.modules.get("ssl")
    if ssl is not None:
        methods[ssl.SSLSocket] = _socket.socket.fileno
    owners = {}
    *_, instances = _core.heap_summary(tuple(methods), _NOTHING_LARGE)
    for instance in instances:
        kind = type(instance)
        try:
            owners[methods[kind](instance)] = f"{kind.__module__}.{kind.__qualname__}"
        except ValueError:  # closed
            continue
    return owners
