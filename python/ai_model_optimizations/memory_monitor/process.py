"""What the operating system knows about this process: a few files of ``/proc``, no Python objects.

Everything here is cheap enough for a tick (tens of microseconds) except :func:`proportional_bytes`
and :func:`workers`, which make the kernel walk the page tables.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .. import _core

PROC = "/proc"


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Bytes of one process; fields that the platform does not report are 0.

    ``rss`` is the resident set: ``anonymous`` (heap, stacks) plus ``file_mapped`` (libraries,
    memory-mapped models: clean pages that the system can drop) plus ``shared``.
    """

    rss: int
    anonymous: int
    file_mapped: int
    shared: int
    swapped: int
    peak: int
    virtual: int
    threads: int

    @property
    def counted(self) -> int:
        """Bytes that only this process can give back: what the threshold is compared with."""
        return self.anonymous + self.shared + self.swapped


@dataclass(frozen=True, slots=True)
class Worker:
    """One process of a service that runs several; ``pss`` splits shared pages between them."""

    pid: int
    role: str
    command: str
    pss: int
    rss: int


def _status_fields(pid: int | str) -> dict[str, int]:
    """The numeric lines of ``/proc/PID/status``; sizes in bytes."""
    fields = {}
    with open(f"{PROC}/{pid}/status", encoding="utf-8", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            words = value.split()
            if words and words[0].isdigit():
                fields[name] = int(words[0]) * (1024 if words[-1] == "kB" else 1)
    return fields


def _from_psutil() -> ProcessMemory:
    """Read the process's memory where there is no ``/proc``; the resident set is not split up."""
    import psutil

    process = psutil.Process()
    info = process.memory_info()
    return ProcessMemory(
        rss=info.rss,
        anonymous=info.rss,
        file_mapped=0,
        shared=0,
        swapped=0,
        peak=info.rss,
        virtual=info.vms,
        threads=process.num_threads(),
    )


def memory() -> ProcessMemory:
    """Read this process's memory."""
    try:
        fields = _status_fields("self")
    except OSError:
        return _from_psutil()
    rss = fields.get("VmRSS", 0)
    return ProcessMemory(
        rss=rss,
        anonymous=fields.get("RssAnon", rss),
        file_mapped=fields.get("RssFile", 0),
        shared=fields.get("RssShmem", 0),
        swapped=fields.get("VmSwap", 0),
        peak=max(fields.get("VmHWM", 0), rss),
        virtual=fields.get("VmSize", 0),
        threads=fields.get("Threads", 0),
    )


def proportional_bytes(pid: int | str = "self") -> int | None:
    """Return the proportional set size, which splits shared pages; None if it cannot be read."""
    try:
        with open(f"{PROC}/{pid}/smaps_rollup", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None


def open_files() -> tuple[int, int] | None:
    """Return how many descriptors are open and how many are connected internet sockets."""
    return _core.open_files()


def allocator() -> dict[str, Any]:
    """Return the C allocator's name and its live, retained and mapped bytes."""
    return dict(_core.allocator_info())


def give_back_free_pages() -> bool:
    """Ask the C allocator to return free pages to the system; True when it returned some."""
    return _core.allocator_trim()


def _related() -> Iterator[tuple[int, str, str]]:
    """Yield this process, its children, and those beside and above it of the same command."""
    import psutil

    own = psutil.Process()
    parent = own.parent()
    family = [(own, "self"), *((child, "child") for child in own.children(recursive=True))]
    if parent is not None and parent.pid > 1:
        siblings = [child for child in parent.children() if child.pid != own.pid]
        family += [(parent, "parent"), *((sibling, "sibling") for sibling in siblings)]
    own_command = own.cmdline()[:2]
    for process, role in family:
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        if role in ("self", "child") or (command and command[:2] == own_command):
            yield process.pid, role, os.path.basename(command[0]) if command else ""


def workers() -> list[Worker]:
    """List this process and its fellow workers, largest first.

    Related processes are the children, and the parent and siblings that were started by the same
    command (as the workers of one server are). A process that ends meanwhile, or that may not be
    read, is left out.
    """
    found = []
    for pid, role, command in _related():
        try:
            rss = _status_fields(pid).get("VmRSS", 0)
        except OSError:
            continue
        pss = proportional_bytes(pid)
        if pss is not None:
            found.append(Worker(pid=pid, role=role, command=command, pss=pss, rss=rss))
    return sorted(found, key=lambda worker: -worker.pss)
