"""``ai-model-optimizations doctor [DIR]``: what hurts a service's memory or hides this package.

It reads source files and the environment, and never runs the code it reads.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import sys
import tokenize
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import _core
from . import limits, process
from .snapshot import megabytes

PACKAGE = "ai_model_optimizations"

_SKIPPED_FOLDERS = frozenset(
    {"__pycache__", "node_modules", "site-packages", "dist-packages", "build", "dist"}
)
_MOST_FILES = 20_000
_LARGEST_SOURCE = 2_000_000
_POOL_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "RAYON_NUM_THREADS",
    "AIMO_NUM_THREADS",
)
_WORKER_VARIABLE = "WEB_CONCURRENCY"


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem: what it is, where it is, and what to do about it."""

    check: str
    where: str
    problem: str
    advice: str


def python_files(folder: Path) -> Iterator[Path]:
    """Yield the sources below `folder`; environments, caches and hidden folders are left out."""
    for path, folders, files in os.walk(folder):
        here = Path(path)
        folders[:] = sorted(
            name
            for name in folders
            if name not in _SKIPPED_FOLDERS
            and not name.startswith(".")
            and not (here / name / "pyvenv.cfg").exists()
        )
        yield from (here / name for name in sorted(files) if name.endswith(".py"))


def parse(path: Path) -> ast.Module | None:
    """Return the syntax tree of a source file; None when it is not readable Python."""
    try:
        with tokenize.open(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the source's own invalid escapes are not our concern
            return ast.parse(file.read())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _says(path: Path, words: tuple[bytes, ...]) -> bool:
    """Whether a source mentions one of the words at all: far cheaper than a syntax tree."""
    try:
        if path.stat().st_size > _LARGEST_SOURCE:
            return False
        text = path.read_bytes()
    except OSError:
        return False
    return any(word in text for word in words)


def _is_this_package(path: Path) -> bool:
    own = Path(__file__).resolve().parent.parent
    return path.resolve() in (own, own / "__init__.py") or (path / "_core.pyi").exists()


def check_shadowing(path: Path) -> Iterator[Finding]:
    """Find out whether Python would import the module at `path` instead of this package."""
    hides = path.name == f"{PACKAGE}.py" or (
        path.name == "__init__.py"
        and path.parent.name == PACKAGE
        and not _is_this_package(path.parent)
    )
    if hides:
        yield Finding(
            "shadowing",
            str(path),
            f"a module named {PACKAGE} hides this package from everything that runs here",
            "delete or rename it; the package offers the same names",
        )


def _called_name(node: ast.Call) -> str:
    """``a.b.c`` of a call ``a.b.c(...)``, as far as it is written out."""
    parts = []
    target: ast.expr = node.func
    while isinstance(target, ast.Attribute):
        parts.append(target.attr)
        target = target.value
    if isinstance(target, ast.Name):
        parts.append(target.id)
    return ".".join(reversed(parts))


def _imports_ours(tree: ast.Module, name: str) -> bool:
    """Whether a file takes `name` (or everything) from this package."""
    return any(
        isinstance(node, ast.ImportFrom)
        and (node.module or "").split(".")[0] == PACKAGE
        and any(alias.name in (name, "*") for alias in node.names)
        for node in ast.walk(tree)
    )


def check_two_monitors(path: Path, tree: ast.Module) -> Iterator[Finding]:
    """Find code that creates or defines a second monitor."""
    if _is_this_package(path.parent) or _is_this_package(path.parent.parent):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == "MemoryMonitor":
            yield Finding(
                "two monitors",
                f"{path}:{node.lineno}",
                "the service has a MemoryMonitor of its own, which would run beside this one",
                f"remove it and import from {PACKAGE}.memory_monitor",
            )
        elif isinstance(node, ast.Call) and _called_name(node).split(".")[-1] == "MemoryMonitor":
            ours = _imports_ours(tree, "MemoryMonitor")
            yield Finding(
                "two monitors",
                f"{path}:{node.lineno}",
                "constructs a MemoryMonitor"
                + (": it returns the process's one, with a warning" if ours else ""),
                "use the instance memory_monitor.memory_monitor",
            )


_SAMPLE_INSTEAD = (
    "sample instead: start_monitoring(allocations=True); tracemalloc costs several times"
)


def check_tracemalloc_calls(path: Path, tree: ast.Module) -> Iterator[Finding]:
    """Find a source that switches tracemalloc on and never off."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    if any(_called_name(call) == "tracemalloc.stop" for call in calls):
        return
    for call in calls:
        if _called_name(call) == "tracemalloc.start":
            yield Finding(
                "tracemalloc",
                f"{path}:{call.lineno}",
                "starts tracemalloc and never stops it",
                _SAMPLE_INSTEAD,
            )


def check_tracemalloc() -> Iterator[Finding]:
    """Find tracemalloc that is on in this process or in its environment."""
    value = os.environ.get("PYTHONTRACEMALLOC", "")
    if tracemalloc.is_tracing():
        yield Finding("tracemalloc", "this process", "tracemalloc is on", _SAMPLE_INSTEAD)
    elif value not in ("", "0"):
        where = f"PYTHONTRACEMALLOC={value}"
        yield Finding("tracemalloc", where, "tracemalloc is on", _SAMPLE_INSTEAD)


def _number(name: str) -> int | None:
    text = os.environ.get(name, "")
    return int(text) if text.isdigit() and int(text) > 0 else None


def check_threads() -> Iterator[Finding]:
    """Find thread pools that together have more threads than the process may run."""
    allowed = _allowed_threads()
    workers = _number(_WORKER_VARIABLE) or 1
    for name in _POOL_VARIABLES:
        threads = _number(name)
        if threads is not None and threads * workers > allowed:
            yield Finding(
                "threads",
                f"{name}={threads}" + (f", {_WORKER_VARIABLE}={workers}" if workers > 1 else ""),
                f"{threads * workers} threads for {allowed} that may run at once",
                f"set {name}={max(1, allowed // workers)}",
            )
    unset = [name for name in ("OMP_NUM_THREADS",) if _number(name) is None]
    machine = os.cpu_count() or 1
    if unset and machine > allowed:
        yield Finding(
            "threads",
            "OMP_NUM_THREADS is not set",
            f"OpenMP pools (torch, MKL) start {machine} threads, one per processor of the machine, "
            f"where {allowed} may run at once",
            f"set OMP_NUM_THREADS={max(1, allowed // workers)}",
        )


def _allowed_threads() -> int:
    """Affinity and cpu quota; the package's own pool is sized by both unless it is overridden."""
    if _number("AIMO_NUM_THREADS") is None:
        return _core.thread_count()
    return len(os.sched_getaffinity(0))


def check_arenas() -> Iterator[Finding]:
    """Find a glibc whose arenas may hold on to memory that many threads have freed."""
    settings = os.environ.get("GLIBC_TUNABLES", "")
    if os.environ.get("MALLOC_ARENA_MAX") or "arena_max" in settings:
        return
    if process.allocator()["name"] == "glibc":
        arenas = 8 * (os.cpu_count() or 1)
        yield Finding(
            "glibc arenas",
            "MALLOC_ARENA_MAX is not set",
            f"glibc may keep freed memory in up to {arenas} arenas, one per busy thread",
            "set MALLOC_ARENA_MAX=2 for a service with many threads, or preload jemalloc",
        )


def check_threshold() -> Iterator[Finding]:
    """Find an alarm threshold that cannot be reached within the container's limit."""
    try:
        threshold = limits.threshold_from_environment()
    except ValueError as error:
        yield Finding(
            "threshold", limits.THRESHOLD_VARIABLE, str(error), "set a number of megabytes"
        )
        return
    container = limits.container_memory()
    if threshold is not None and container is not None and threshold * limits.MIB > container.limit:
        limit = megabytes(container.limit)
        yield Finding(
            "threshold",
            f"{limits.THRESHOLD_VARIABLE}={threshold:g}",
            f"the container's limit is {limit} MB, so the process is killed before the alarm",
            f"set at most {limits.CONTAINER_SHARE * limit:.0f}, or leave it unset",
        )


_TREE_CHECKS: tuple[Callable[[Path, ast.Module], Iterator[Finding]], ...] = (
    check_two_monitors,
    check_tracemalloc_calls,
)
#: A source that contains none of these words has nothing for the checks above.
_WORDS = (b"MemoryMonitor", b"tracemalloc")

_ENVIRONMENT_CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_tracemalloc,
    check_threads,
    check_arenas,
    check_threshold,
)


def check_sources(folder: Path) -> Iterator[Finding]:
    """Run the checks of sources; each file is read once, and parsed only if that can matter."""
    for count, path in enumerate(python_files(folder)):
        if count == _MOST_FILES:
            yield Finding(
                "sources",
                str(path),
                f"more than {_MOST_FILES} Python files: this one and the rest were not read",
                "name the service's own folder",
            )
            return
        yield from check_shadowing(path)
        tree = parse(path) if _says(path, _WORDS) else None
        if tree is not None:
            for check in _TREE_CHECKS:
                yield from check(path, tree)


def examine(folder: str | os.PathLike[str] = ".") -> list[Finding]:
    """Run all checks.

    Parameters
    ----------
    folder : where the service's sources are

    Raises
    ------
    NotADirectoryError
        If there is no such folder.
    """
    path = Path(folder)
    if not path.is_dir():
        raise NotADirectoryError(f"folder must be a directory, got {str(path)!r}")
    environment = (finding for check in _ENVIRONMENT_CHECKS for finding in check())
    return [*environment, *check_sources(path)]


def report(findings: list[Finding]) -> str:
    """Return the findings as text for people."""
    if not findings:
        return "doctor: nothing found that hurts"
    lines = [f"doctor: {len(findings)} finding{'s' if len(findings) > 1 else ''}"]
    for finding in findings:
        lines += [
            f"\n[{finding.check}] {finding.where}",
            f"  {finding.problem}",
            f"  -> {finding.advice}",
        ]
    return "\n".join(lines)


def run(arguments: argparse.Namespace) -> int:
    """Run the command: 0 when nothing was found, 1 with findings, 2 for a wrong argument."""
    try:
        findings = examine(arguments.folder)
    except OSError as error:
        print(f"doctor: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        print(report(findings))
    return 1 if findings else 0


def add_command(subparsers: Any) -> None:
    """Add ``doctor`` to the command line's `subparsers` (of ``argparse``)."""
    parser = subparsers.add_parser(
        "doctor",
        help="report what hurts a service's memory or hides this package",
        description="Read a service's sources and environment, run none of them, and report "
        "what hurts. Exit status: 0 nothing found, 1 findings, 2 wrong argument.",
    )
    parser.add_argument("folder", nargs="?", default=".", metavar="DIR", help="default: .")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(run=run)
