"""``ai-model-optimizations memory -- script.py args``: run a script and show what held memory."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import textwrap
import traceback as traceback_module
from pathlib import Path
from types import ModuleType
from typing import Any

from .._files import check_writable
from ..errors import AimoError
from . import allocations, census, flamegraph
from .allocations import Snapshot, Traceback, format_bytes

_STATUS_FIELDS = {
    "VmHWM": "resident at most",
    "VmRSS": "resident now",
    "RssAnon": "of it anonymous",
    "RssFile": "of it file-mapped",
}


def _process_bytes() -> dict[str, int]:
    """Return what the kernel reports about the process; empty where there is no /proc."""
    figures = {}
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    for line in lines:
        name, _, value = line.partition(":")
        if name in _STATUS_FIELDS:
            figures[_STATUS_FIELDS[name]] = int(value.split()[0]) * 1024
    return figures


def _split(snapshot: Snapshot, counted: census.Census) -> dict[str, int]:
    """Where the memory is: the process, Python's objects, the libraries' buffers."""
    split = _process_bytes()
    split["Python objects at most"] = snapshot.peak_bytes
    split["Python objects now"] = snapshot.live_bytes
    for tensors in counted.tensors:
        split[f"{tensors.name} in host memory"] = tensors.buffer_bytes or 0
        if tensors.device_bytes:
            split[f"{tensors.name} on devices"] = tensors.device_bytes
    return split


def _below_command(traceback: Traceback) -> Traceback:
    """The part of a stack that is the script's own."""
    own = [i for i, frame in enumerate(traceback) if frame.filename == __file__]
    return traceback[own[-1] + 1 :] if own else traceback


def _exit_code(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    print(error.code, file=sys.stderr)
    return 1


def _execute(path: Path, arguments: list[str]) -> tuple[int, ModuleType]:
    """Run the file as ``__main__``; its module is returned so that its globals stay alive."""
    code = compile(path.read_bytes(), str(path), "exec")
    module = ModuleType("__main__")
    module.__dict__.update(__file__=str(path), __builtins__=__builtins__)
    saved = sys.argv, sys.path[:], sys.modules["__main__"]
    sys.argv = [str(path), *arguments]
    sys.path[:1] = [str(path.parent)]
    sys.modules["__main__"] = module
    status = 0
    try:
        exec(code, module.__dict__)
    except SystemExit as error:
        status = _exit_code(error)
    except BaseException as error:  # whatever the script raises, the report is still written
        tail = error.__traceback__.tb_next if error.__traceback__ else None
        traceback_module.print_exception(type(error), error, tail)
        status = 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    finally:
        sys.argv, sys.path[:], sys.modules["__main__"] = saved
    return status, module


def _report(snapshot: Snapshot, counted: census.Census, options: argparse.Namespace) -> str:
    shown = snapshot.at_peak() if options.at == "peak" else snapshot
    moment = "at the peak" if options.at == "peak" else "at the end"
    lines = [f"Python memory by call site, {moment}", shown.table(options.limit), ""]
    lines += ["Objects at the end", counted.table(min(options.limit, 10))]
    lines += [*textwrap.wrap(counted.blind_spots, 100, initial_indent="note: "), ""]
    lines += ["Where the memory is"]
    lines += [
        f"{format_bytes(size):>10}  {name}" for name, size in _split(snapshot, counted).items()
    ]
    return "\n".join(lines)


def _as_json(snapshot: Snapshot, counted: census.Census, options: argparse.Namespace) -> str:
    shown = snapshot.at_peak() if options.at == "peak" else snapshot
    document: dict[str, Any] = {
        "at": options.at,
        "allocations": shown.to_dict(options.limit),
        "census": counted.to_dict(options.limit),
        "split": _split(snapshot, counted),
    }
    return json.dumps(document, indent=2)


def _emit(text: str, output: Path | None) -> None:
    if output is None:
        print(text, file=sys.stderr)
    else:
        output.write_text(text + "\n", encoding="utf-8")


def run(options: argparse.Namespace) -> int:
    """Run the script of `options` under sampling and report; return its exit status."""
    script, *arguments = options.script
    path = Path(script)
    try:
        if options.limit < 0:
            raise ValueError(f"--limit: expected 0 or more lines, got {options.limit}")
        for file in filter(None, (options.output, options.svg)):
            check_writable(file)
        allocations.start(options.sample_bytes, options.frames)
        try:
            status, module = _execute(path, arguments)
            snapshot = allocations.snapshot().map_tracebacks(_below_command)
        finally:
            allocations.stop()
        counted = census.take(buffers=True)
        del module
    except (AimoError, OSError, ValueError, SyntaxError) as error:
        print(f"memory: {error}", file=sys.stderr)
        return 2
    text = (
        _as_json(snapshot, counted, options)
        if options.json
        else _report(snapshot, counted, options)
    )
    _emit(text, options.output)
    if options.svg is not None:
        shown = snapshot.at_peak() if options.at == "peak" else snapshot
        title = f"{path.name}: live Python memory at the {options.at}"
        options.svg.write_text(flamegraph.render(shown.sites, title), encoding="utf-8")
    return status


def add_command(subparsers: Any) -> None:
    """Add ``memory`` to the subcommands of an ``argparse`` parser."""
    parser = subparsers.add_parser(
        "memory",
        help="run a script and show which lines held memory",
        usage="%(prog)s [options] -- script.py [arguments]",
        description="Run a script under allocation sampling; then print the call sites that held "
        "Python memory, the kinds of objects, and where the process's memory is.",
    )
    parser.add_argument(
        "--at", choices=("peak", "end"), default="peak", help="moment to show (default: peak)"
    )
    parser.add_argument(
        "--sample-bytes", type=int, default=128 << 10, help="mean distance of samples, in bytes"
    )
    parser.add_argument("--frames", type=int, default=16, help="frames to keep of a stack")
    parser.add_argument("--limit", type=int, default=20, help="lines of the tables")
    parser.add_argument("--svg", type=Path, help="write a flame graph here")
    parser.add_argument("--json", action="store_true", help="report as JSON")
    parser.add_argument("--output", type=Path, help="write the report here, not to standard error")
    parser.add_argument("script", nargs="+", help="the script and its arguments, after --")
    parser.set_defaults(run=run)
