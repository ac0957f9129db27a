"""Which lines of Python hold the memory, at a cost low enough for production.

A hook in CPython's allocators samples about one allocation per ``sample_bytes`` allocated bytes and
follows the sampled blocks until they are freed. From them it estimates the live bytes of every call
site, with a standard error. Buffers of numpy, torch and other C libraries come from elsewhere and
are not seen; this is about Python's own objects.

    >>> from ai_model_optimizations.memory_monitor import allocations
    >>> allocations.start()
    >>> kept = [str(i) * 50 for i in range(100_000)]
    >>> print(allocations.snapshot().table(limit=3))  # doctest: +SKIP
    >>> allocations.stop()

There is one hook per process; :func:`start` and :func:`stop` may be called from any thread.
"""

from __future__ import annotations

import atexit
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import Any, Literal

from .. import _core
from .._environment import disabled
from ..errors import UnsupportedError

__all__ = [
    "Difference",
    "Frame",
    "Site",
    "Snapshot",
    "Status",
    "snapshot",
    "start",
    "status",
    "stop",
]

#: Frames shown in front of everything that has no known stack.
UNKNOWN = "<unknown>"

_DISPLACED = (
    "another allocator hook was removed and took this one with it (tracemalloc.stop() does that "
    "when it was started first); nothing is known since: call start() again"
)


@dataclass(frozen=True, slots=True, order=True)
class Frame:
    """One function of a call stack, with the line at which it allocated or made the next call."""

    filename: str
    line: int
    function: str

    def __str__(self) -> str:
        place = f"{self.filename}:{self.line}" if self.line else self.filename
        return f"{place} ({self.function})" if self.function else place


Traceback = tuple[Frame, ...]


@dataclass(frozen=True, slots=True)
class Site:
    """The memory allocated by one call site that is still alive.

    Attributes
    ----------
    traceback : the stack, outermost frame first; empty when it is not known
    live_bytes, live_blocks : unbiased estimates
    standard_error : of live_bytes; the true value is within one standard error in about 68% of
        cases, within two in 95%, as long as there are more than a handful of samples
    samples : number of sampled blocks behind the estimates
    """

    traceback: Traceback
    live_bytes: int
    live_blocks: int
    standard_error: float
    samples: int

    def __str__(self) -> str:
        return str(self.traceback[-1]) if self.traceback else UNKNOWN


@dataclass(frozen=True, slots=True)
class Difference:
    """How one site changed between two snapshots; the numbers may be negative.

    ``standard_error`` treats the two snapshots as independent; they share the blocks alive in
    both, so it is too large rather than too small.
    """

    traceback: Traceback
    live_bytes: int
    live_blocks: int
    standard_error: float

    @property
    def is_significant(self) -> bool:
        """Whether the change is more than two standard errors."""
        return abs(self.live_bytes) > 2.0 * self.standard_error

    def __str__(self) -> str:
        return str(self.traceback[-1]) if self.traceback else UNKNOWN


@dataclass(frozen=True, slots=True)
class Status:
    """Whether sampling runs, what it costs and what it cannot see."""

    running: bool
    displaced: bool
    sample_bytes: int
    frames: int
    live_bytes: int
    standard_error: float
    peak_bytes: int
    live_samples: int
    memory_bytes: int
    note: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The sites at one moment, largest first. Plain data: it keeps nothing else alive.

    Attributes
    ----------
    timestamp : seconds since the epoch
    sites : what is alive now
    peak_sites : what was alive when the estimated total was at its highest since the start
    peak_bytes : that total
    sample_bytes, frames : the settings of :func:`start`
    note : what could not be seen and why; empty when all is well
    """

    timestamp: float
    sites: tuple[Site, ...]
    peak_sites: tuple[Site, ...]
    peak_bytes: int
    sample_bytes: int
    frames: int
    note: str

    @property
    def live_bytes(self) -> int:
        """Estimated bytes alive over all sites."""
        return sum(site.live_bytes for site in self.sites)

    @property
    def standard_error(self) -> float:
        """Standard error of :attr:`live_bytes`."""
        return math.sqrt(sum(site.standard_error**2 for site in self.sites))

    def at_peak(self) -> Snapshot:
        """Return the snapshot at the peak."""
        return replace(self, sites=self.peak_sites)

    def map_tracebacks(self, change: Callable[[Traceback], Traceback]) -> Snapshot:
        """Return a snapshot with changed tracebacks; sites that become equal become one."""
        return replace(
            self,
            sites=_merge((change(site.traceback), site) for site in self.sites),
            peak_sites=_merge((change(site.traceback), site) for site in self.peak_sites),
        )

    def grouped(self, by: Literal["line", "function", "file"] = "line") -> Snapshot:
        """Return a snapshot whose sites are the innermost lines, functions or files."""
        if by not in ("line", "function", "file"):
            raise ValueError(f"by: expected 'line', 'function' or 'file', got {by!r}")

        def shorten(traceback: Traceback) -> Traceback:
            if not traceback or by == "line":
                return traceback[-1:]
            innermost = traceback[-1]
            return (Frame(innermost.filename, 0, innermost.function if by == "function" else ""),)

        return self.map_tracebacks(shorten)

    def filtered(
        self,
        include: str | Sequence[str] = "*",
        exclude: str | Sequence[str] = (),
        *,
        all_frames: bool = False,
    ) -> Snapshot:
        """Return the sites whose file name matches.

        Parameters
        ----------
        include, exclude
            Shell patterns (``*/site-packages/*``); a site stays when one of `include` and none of
            `exclude` matches.
        all_frames
            Match any frame of the stack, not only the innermost.
        """
        wanted, unwanted = _patterns(include), _patterns(exclude)

        def stays(site: Site) -> bool:
            frames = site.traceback if all_frames else site.traceback[-1:]
            names = [frame.filename for frame in frames] or [UNKNOWN]
            return _matches(names, wanted) and not _matches(names, unwanted)

        return replace(
            self,
            sites=tuple(filter(stays, self.sites)),
            peak_sites=tuple(filter(stays, self.peak_sites)),
        )

    def compare(self, older: Snapshot) -> list[Difference]:
        """Return how every site changed since `older`, the largest change first."""
        if not isinstance(older, Snapshot):
            raise TypeError(f"older: expected a Snapshot, got {type(older).__name__}")
        new = {site.traceback: site for site in self.sites}
        old = {site.traceback: site for site in older.sites}
        nothing = Site((), 0, 0, 0.0, 0)
        changes = []
        for traceback in new.keys() | old.keys():
            after, before = new.get(traceback, nothing), old.get(traceback, nothing)
            changes.append(
                Difference(
                    traceback,
                    after.live_bytes - before.live_bytes,
                    after.live_blocks - before.live_blocks,
                    math.hypot(after.standard_error, before.standard_error),
                )
            )
        return sorted(changes, key=lambda c: (-abs(c.live_bytes), c.traceback))

    def collapsed(self) -> str:
        """Return one line per site, ``outer;...;inner bytes``, as flame graph tools read it."""
        lines = []
        for site in self.sites:
            labels = [str(frame) for frame in site.traceback] or [UNKNOWN]
            stack = ";".join(label.replace(";", ":").replace("\n", " ") for label in labels)
            lines.append(f"{stack} {site.live_bytes}\n")
        return "".join(lines)

    def table(self, limit: int = 20) -> str:
        """Return the largest `limit` sites as text, each with the line that called it."""
        lines = [f"{'live':>10}  {'+-':>9}  {'blocks':>9}  site"]
        for site in self.sites[:limit]:
            caller = f"  <- {site.traceback[-2]}" if len(site.traceback) > 1 else ""
            error = format_bytes(site.standard_error)
            size = format_bytes(site.live_bytes)
            lines.append(f"{size:>10}  {error:>9}  {site.live_blocks:>9,}  {site}{caller}")
        rest = self.sites[limit:]
        if rest:
            size = format_bytes(sum(site.live_bytes for site in rest))
            blocks = sum(site.live_blocks for site in rest)
            lines.append(f"{size:>10}  {'':>9}  {blocks:>9,}  {len(rest)} more sites")
        size, error = format_bytes(self.live_bytes), format_bytes(self.standard_error)
        lines.append(f"{size:>10}  {error:>9}  {'':>9}  in all")
        if self.note:
            lines.append(f"note: {self.note}")
        return "\n".join(lines)

    def to_dict(self, limit: int | None = None) -> dict[str, Any]:
        """Return the snapshot as plain JSON types, with the largest `limit` sites."""
        return {
            "timestamp": self.timestamp,
            "live_bytes": self.live_bytes,
            "standard_error": round(self.standard_error),
            "peak_bytes": self.peak_bytes,
            "sample_bytes": self.sample_bytes,
            "note": self.note,
            "sites": [
                {
                    "live_bytes": site.live_bytes,
                    "live_blocks": site.live_blocks,
                    "standard_error": round(site.standard_error),
                    "samples": site.samples,
                    "traceback": [
                        {"filename": f.filename, "line": f.line, "function": f.function}
                        for f in site.traceback
                    ],
                }
                for site in self.sites[:limit]
            ],
        }


def format_bytes(count: float) -> str:
    """Return a count of bytes for people: three digits and a unit."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024.0
    return f"{count:.2f} GiB"


def _patterns(patterns: str | Sequence[str]) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for name in names for pattern in patterns)


def _merge(sites: Iterable[tuple[Traceback, Site]]) -> tuple[Site, ...]:
    """Sites with these tracebacks, equal ones added up, the largest first."""
    merged: dict[Traceback, Site] = {}
    for traceback, site in sites:
        known = merged.get(traceback, Site(traceback, 0, 0, 0.0, 0))
        merged[traceback] = Site(
            traceback,
            known.live_bytes + site.live_bytes,
            known.live_blocks + site.live_blocks,
            math.hypot(known.standard_error, site.standard_error),
            known.samples + site.samples,
        )
    return tuple(sorted(merged.values(), key=lambda s: (-s.live_bytes, s.traceback)))


def _sites(
    frames: Sequence[tuple[int, str, int, str] | None],
    figures: Sequence[tuple[int, float, float, float, int]],
) -> tuple[Site, ...]:
    """Sites from the hook's tree: a node's stack is its frame below those of its parents."""

    def traceback(node: int) -> Traceback:
        stack = []
        frame = frames[node]
        while frame is not None:
            parent, filename, line, function = frame
            stack.append(Frame(filename, line, function))
            frame = frames[parent]
        return tuple(reversed(stack))

    return _merge(
        (
            stack := traceback(node),
            Site(stack, round(size), round(blocks), math.sqrt(max(variance, 0.0)), samples),
        )
        for node, size, blocks, variance, samples in figures
    )


def _note(info: dict[str, Any]) -> str:
    notes = []
    if info["displaced"]:
        notes.append(_DISPLACED)
    if info["frames_missing"]:
        notes.append(f"no call sites: {info['frames_missing']}")
    if info["dropped_samples"]:
        notes.append(
            f"{info['dropped_samples']} samples found no place, so the estimates are too low: "
            "use a larger sample_bytes"
        )
    if info["cut_stacks"]:
        notes.append(
            f"{info['cut_stacks']} samples are counted under an outer frame, because there were "
            "too many call sites: use fewer frames"
        )
    return "; ".join(notes)


def _check_count(name: str, value: object, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if not least <= value <= most:
        raise ValueError(f"{name}: expected {least} to {most}, got {value}")
    return value


def _check_allowed() -> None:
    if disabled("hook"):
        raise UnsupportedError(
            f"allocation sampling is forbidden by AIMO_DISABLE={os.environ['AIMO_DISABLE']}"
        )


def start(sample_bytes: int = 128 << 10, frames: int = 8) -> None:
    """Start sampling allocations; objects that are already alive are not seen.

    Starting again with the same settings does nothing.

    Parameters
    ----------
    sample_bytes
        Mean number of allocated bytes per sample, 1 to 2**40. The relative standard error of a
        site that holds `b` bytes in small blocks is about ``sqrt(sample_bytes / b)``.
    frames
        Innermost frames to keep of each stack, 0 to 64.

    Raises
    ------
    UnsupportedError
        If ``AIMO_DISABLE`` names ``hook``, on a free-threaded CPython, or outside the main
        interpreter.
    ValueError
        If a value is out of range, or sampling already runs with other settings.
    """
    info = _core.memhook_info()
    sample_bytes = _check_count("sample_bytes", sample_bytes, 1, info["max_sample_bytes"])
    frames = _check_count("frames", frames, 0, info["max_frames"])
    _check_allowed()
    if info["active"]:
        if (info["sample_bytes"], info["frames"]) == (sample_bytes, frames):
            return
        raise ValueError(
            f"sampling runs with sample_bytes={info['sample_bytes']} and frames={info['frames']}; "
            "call stop() before starting it with other settings"
        )
    _core.memhook_start(sample_bytes, frames, int.from_bytes(os.urandom(8), "little"))
    # The interpreter's own end frees what code objects refer to; by then the hook must be out.
    atexit.unregister(stop)
    atexit.register(stop)


def stop() -> None:
    """Stop sampling and forget what it saw; does nothing if it is not running."""
    _core.memhook_stop()


def status() -> Status:
    """Return whether sampling runs, its totals and what it cannot see; takes microseconds."""
    info = _core.memhook_info()
    return Status(
        running=info["active"],
        displaced=info["displaced"],
        sample_bytes=info["sample_bytes"],
        frames=info["frames"],
        live_bytes=round(info["live_bytes"]),
        standard_error=math.sqrt(max(info["live_variance"], 0.0)),
        peak_bytes=round(info["peak_bytes"]),
        live_samples=info["live_samples"],
        memory_bytes=info["memory_bytes"],
        note=_note(info),
    )


def snapshot() -> Snapshot:
    """Return what is still alive of everything allocated since :func:`start`, by call site.

    If removing another hook has silently removed this one too, the snapshot is empty and its
    ``note`` says so.

    Raises
    ------
    RuntimeError
        If sampling has not been started.
    """
    info = _core.memhook_info()
    if not info["active"] and not info["displaced"]:
        raise RuntimeError("allocation sampling is not running: call start() first")
    frames, live, at_peak = _core.memhook_sites()
    return Snapshot(
        timestamp=time.time(),
        sites=_sites(frames, live),
        peak_sites=_sites(frames, at_peak),
        peak_bytes=round(info["peak_bytes"]),
        sample_bytes=info["sample_bytes"],
        frames=info["frames"],
        note=_note(info),
    )
