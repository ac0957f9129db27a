"""How much memory this process may use: the container's limit, cgroup v2 or v1, and the machine's.

A container's limit is in the files of the process's own control group and of every group above it;
the one that leaves the least room counts. ``psutil.virtual_memory()`` is not used because inside a
container it reports the host's memory.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

MIB = 1 << 20
DEFAULT_THRESHOLD_MB = 4096.0
CONTAINER_SHARE = 0.85
THRESHOLD_VARIABLE = "MEMORY_THRESHOLD_MB"

#: cgroup v1 expresses "no limit" as the largest page-aligned number.
_UNLIMITED = 1 << 62


@dataclass(frozen=True, slots=True)
class ContainerMemory:
    """The control group that leaves this process the least room, in bytes.

    ``working_set`` is the memory that the kernel cannot drop at once: usage without inactive file
    pages, the number by which Kubernetes evicts.
    """

    version: int
    path: str
    limit: int
    usage: int
    working_set: int

    @property
    def available(self) -> int:
        """Bytes left before the limit."""
        return max(0, self.limit - self.working_set)


@dataclass(frozen=True, slots=True)
class Group:
    """The folder of one control group in its version's file system."""

    version: int
    folder: str


def _read_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _read_number(path: str) -> int | None:
    text = _read_text(path).strip()
    return int(text) if text.isdigit() else None


def _read_table(path: str) -> dict[str, int]:
    rows = (line.split() for line in _read_text(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


def _unescaped(path: str) -> str:
    """Undo mountinfo's octal escapes of blanks."""
    for code, character in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        path = path.replace(code, character)
    return path


def _mounts(root: str) -> Iterator[tuple[str, str, str, list[str]]]:
    """(type, root inside the file system, mount point, super options) of every mount."""
    for line in _read_text(f"{root}/proc/self/mountinfo").splitlines():
        left, separator, right = line.partition(" - ")
        fields, rest = left.split(), right.split()
        if separator and len(fields) >= 5 and rest:
            options = rest[-1].split(",")
            yield rest[0], _unescaped(fields[3]), _unescaped(fields[4]), options


def _own_paths(root: str) -> dict[str, str]:
    """``{"": v2 path, "memory": v1 path, ...}`` from ``/proc/self/cgroup``."""
    paths = {}
    for line in _read_text(f"{root}/proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, separator, path = rest.partition(":")
        if separator:
            for controller in controllers.split(","):
                paths[controller] = path
    return paths


def _inside(mount_root: str, path: str) -> str:
    """The group's path as seen through a mount that shows only a part of the tree."""
    if mount_root != "/" and (path + "/").startswith(mount_root.rstrip("/") + "/"):
        path = path[len(mount_root.rstrip("/")) :]
    return "" if path in ("/", "") or ".." in path.split("/") else path


def _groups(root: str) -> Iterator[Group]:
    """Find the groups of this process and all above them."""
    paths = _own_paths(root)
    for kind, mount_root, mount_point, options in _mounts(root):
        if kind == "cgroup2" and "" in paths:
            controller, version = "", 2
        elif kind == "cgroup" and "memory" in options and "memory" in paths:
            controller, version = "memory", 1
        else:
            continue
        top = root + mount_point
        folder = top + _inside(mount_root, paths[controller])
        while len(folder) >= len(top):
            yield Group(version, folder)
            folder = os.path.dirname(folder)


def _read_group(group: Group) -> ContainerMemory | None:
    """Read the limit that one group's folder sets, or None."""
    version, folder = group.version, group.folder
    if version == 2:
        limits = [_read_number(f"{folder}/{name}") for name in ("memory.max", "memory.high")]
        usage, inactive = "memory.current", "inactive_file"
    else:
        limits = [_read_number(f"{folder}/memory.limit_in_bytes")]
        usage, inactive = "memory.usage_in_bytes", "total_inactive_file"
    real = [limit for limit in limits if limit is not None and 0 < limit < _UNLIMITED]
    if not real:
        return None
    used = _read_number(f"{folder}/{usage}") or 0
    dropped = _read_table(f"{folder}/memory.stat").get(inactive, 0)
    return ContainerMemory(version, folder, min(real), used, max(0, used - dropped))


def limiting_groups(root: str = "") -> tuple[Group, ...]:
    """List the groups that set a limit, from this process up; `root` prefixes paths, for tests."""
    return tuple(group for group in _groups(root) if _read_group(group) is not None)


def tightest(groups: tuple[Group, ...]) -> ContainerMemory | None:
    """Read the group that leaves the least room; None when none sets a limit."""
    found = [memory for memory in map(_read_group, groups) if memory is not None]
    return min(found, key=lambda memory: memory.available, default=None)


def container_memory(root: str = "") -> ContainerMemory | None:
    """Read the container's limit and use; None without a limit."""
    return tightest(limiting_groups(root))


@functools.cache
def machine_memory(root: str = "") -> int | None:
    """Return the size of the machine's memory in bytes; None if the system does not tell."""
    for line in _read_text(f"{root}/proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None


def checked_threshold(value: object, name: str = "memory_threshold_mb") -> float:
    """Return `value` as megabytes, or raise an error that names the argument."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of megabytes, got {type(value).__name__}")
    if not 0 < value <= sys.float_info.max:
        raise ValueError(f"{name} must be a positive number of megabytes, got {value!r}")
    return float(value)


def threshold_from_environment() -> float | None:
    """Return ``MEMORY_THRESHOLD_MB``, or None when it is not set."""
    text = os.environ.get(THRESHOLD_VARIABLE, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        raise ValueError(
            f"{THRESHOLD_VARIABLE} must be a number of megabytes, got {text!r}"
        ) from None
    return checked_threshold(value, THRESHOLD_VARIABLE)


def default_threshold_mb(container: ContainerMemory | None, root: str = "") -> float:
    """Return min(4 GiB, 85% of the container's limit, or else of the machine's memory), in MB."""
    limit = container.limit if container is not None else machine_memory(root)
    if limit is None:
        return DEFAULT_THRESHOLD_MB
    return min(DEFAULT_THRESHOLD_MB, CONTAINER_SHARE * limit / MIB)
