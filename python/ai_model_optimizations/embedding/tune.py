"""``ai-model-optimizations tune``: measures the settings that fit a machine and its texts.

One setting after another is varied, each measured the way a service works: many callers, one text
each. Threads and dtype come first, each pair in a process of its own, because both are fixed once a
model is loaded.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from .._files import check_writable, write_whole
from .batching import BatchEmbeddingProcessor
from .dtypes import resolve_dtype
from .engine import Embedder, load_by_name
from .settings import THREADS_VARIABLE, Settings

_CANDIDATES: Final[dict[str, tuple[Any, ...]]] = {
    "batch_size": (8, 16, 32, 64, 128),
    "max_tokens": (2048, 4096, 8192, 16384),
    "max_wait_time": (0.0, 0.0005, 0.002, 0.005),
    "workers": (1, 2),
}
_DEFAULTS: Final[dict[str, Any]] = {
    "batch_size": 32,
    "max_tokens": 16384,
    "max_wait_time": 0.002,
    "workers": 1,
}
_AS_GOOD_AS: Final = 0.97  # of the best throughput; below that, latency does not count
_MOST_TEXTS: Final = 5000
_DUEL_ROUNDS: Final = 2
# Every value but the default once, the default at the start, and both in each round of the duel.
_TUNED_TRIALS: Final = sum(len(v) - 1 for v in _CANDIDATES.values()) + 1 + 2 * _DUEL_ROUNDS


@dataclass(frozen=True)
class Trial:
    """One measurement: the settings and the results."""

    settings: dict[str, Any]
    texts_per_second: float
    p99_ms: float


def add_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``tune`` to the command line; its function is in ``run``."""
    parser = subparsers.add_parser(
        "tune",
        help="measure the best settings for your texts on this machine",
        description="Measures threads, dtype, batch size, token budget and wait on your own texts "
        "and writes the best as TOML, for BatchEmbeddingProcessor.from_config and AIMO_CONFIG.",
    )
    parser.add_argument("--texts", required=True, type=Path, help="UTF-8 file, one text per line")
    parser.add_argument("--output", type=Path, default=Path("aimo.toml"), help="file to write")
    parser.add_argument("--model", help="name or path; the default model when not given")
    parser.add_argument(
        "--dtypes", default="auto", help="comma-separated; int8 changes vectors, so name it to try"
    )
    parser.add_argument("--callers", type=int, default=64, help="concurrent callers to simulate")
    parser.add_argument("--seconds", type=float, default=60.0, help="time to spend, roughly")
    parser.set_defaults(run=run_command)


def run_command(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit status.

    Raises
    ------
    AimoError, OSError, ValueError
        If an argument is wrong, the texts cannot be read, the model not loaded or the result not
        written.
    """
    if arguments.callers < 1 or not 0 < arguments.seconds < math.inf:
        raise ValueError("--callers and --seconds must be above 0 and finite")
    check_writable(arguments.output)
    texts = read_texts(arguments.texts)
    dtypes = [name.strip() for name in arguments.dtypes.split(",") if name.strip()]
    if not dtypes:
        raise ValueError("--dtypes: expected at least one type")
    for dtype in dtypes:
        resolve_dtype(dtype)
    pairs = [(threads, dtype) for dtype in dtypes for threads in thread_counts()]
    seconds = arguments.seconds / (len(pairs) + _TUNED_TRIALS)
    threads, dtype = _best_pair(arguments.model, pairs, texts, seconds)
    with _environment(THREADS_VARIABLE, str(threads)):
        batching, report = _in_own_process(
            _tune_loaded, arguments.model, dtype, texts, arguments.callers, seconds
        )
    settings = Settings(arguments.model, dtype, batching, threads)
    write_whole(arguments.output, [settings.to_toml(report).encode()])
    print(f"{report}\nwritten to {arguments.output}; use it with AIMO_CONFIG={arguments.output}")
    return 0


def read_texts(path: Path) -> list[str]:
    """Return the lines of a file that are not empty, at most 5,000 taken evenly from all of it."""
    texts = read_lines(path)
    return texts[:: -(-len(texts) // _MOST_TEXTS)]


def read_lines(path: Path) -> list[str]:
    """Return the lines of a file that are not empty.

    Raises
    ------
    OSError, ValueError
        If it cannot be read, is no UTF-8 or has no text.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from error
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise ValueError(f"{path}: no line with text in it")
    return texts


def thread_counts() -> list[int]:
    """Return the numbers of threads worth trying here: all usable processors, and half of them."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return sorted({usable or 1, max(1, (usable or 1) // 2)}, reverse=True)


def measure(
    model: Embedder, texts: Sequence[str], callers: int, seconds: float, **settings: Any
) -> Trial:
    """Measure `callers` concurrent callers of one text each, for `seconds`."""
    latencies: list[float] = []

    async def caller(processor: BatchEmbeddingProcessor, first: int, until: float) -> None:
        position = first
        while (began := time.perf_counter()) < until:
            await processor.embed(texts[position % len(texts)])
            latencies.append(time.perf_counter() - began)
            position += callers

    async def main() -> float:
        async with BatchEmbeddingProcessor(model=model, cache_mb=0, **settings) as processor:
            await processor.warmup()
            began = time.perf_counter()
            await asyncio.gather(*(caller(processor, i, began + seconds) for i in range(callers)))
            return time.perf_counter() - began

    took = asyncio.run(main())
    return Trial(settings, len(latencies) / took, float(np.quantile(latencies, 0.99)) * 1e3)


def best_of(trials: Iterable[Trial]) -> Trial:
    """Return the trial with the lowest p99 among those about as fast as the fastest."""
    trials = list(trials)
    fastest = max(trial.texts_per_second for trial in trials)
    good = [trial for trial in trials if trial.texts_per_second >= _AS_GOOD_AS * fastest]
    return min(good, key=lambda trial: trial.p99_ms)


def tune(
    model: Embedder,
    texts: Sequence[str],
    callers: int,
    seconds: float,
    progress: Callable[[Trial], object] = lambda trial: None,
) -> tuple[Trial, Trial]:
    """Vary one setting after another.

    Parameters
    ----------
    model
        What embeds.
    texts
        What to embed.
    callers
        How many callers to simulate.
    seconds
        Time for each measurement.
    progress
        Called with each.

    Returns
    -------
    The best trial, and one with the default settings measured alternately with it; they are the
    same trial if nothing is better than the default.
    """
    best = replace(measure(model, texts, callers, seconds, **_DEFAULTS), settings=_DEFAULTS)
    progress(best)
    for name, values in _CANDIDATES.items():
        trials = [best]
        for value in values:
            if value != best.settings[name]:
                settings = {**best.settings, name: value}
                trials.append(measure(model, texts, callers, seconds, **settings))
                progress(trials[-1])
        best = best_of(trials)
    if best.settings == _DEFAULTS:
        return best, best
    # A machine's speed changes during the trials, so the two are measured alternately.
    duel: dict[str, list[Trial]] = {"best": [], "default": []}
    for _ in range(_DUEL_ROUNDS):
        for name, settings in (("best", best.settings), ("default", _DEFAULTS)):
            duel[name].append(measure(model, texts, callers, seconds, **settings))
            progress(duel[name][-1])
    best, default = _together(duel["best"]), _together(duel["default"])
    return best_of([best, default]), default


def _together(trials: list[Trial]) -> Trial:
    """Return the mean of trials with the same settings."""
    speed = statistics.fmean(trial.texts_per_second for trial in trials)
    return Trial(trials[0].settings, speed, statistics.fmean(trial.p99_ms for trial in trials))


def _best_pair(
    name: str | None, pairs: list[tuple[int, str]], texts: list[str], seconds: float
) -> tuple[int, str]:
    """Return the threads and dtype with the best throughput of plain encode."""
    speeds: dict[tuple[int, str], float] = {}
    for threads, dtype in pairs:
        with _environment(THREADS_VARIABLE, str(threads)):
            speed = _in_own_process(_offline_speed, name, dtype, texts, seconds)
        print(f"threads={threads} dtype={dtype}: {speed:.0f} texts/s", file=sys.stderr)
        speeds[threads, dtype] = speed
    return max(speeds, key=speeds.__getitem__)


def _offline_speed(name: str | None, dtype: str, texts: list[str], seconds: float) -> float:
    model = load_by_name(name, dtype)
    model.encode(texts[:32])
    began = time.perf_counter()
    done = 0
    while time.perf_counter() < began + seconds:
        for start in range(0, len(texts), 32):
            done += len(model.encode(texts[start : start + 32]))
            if time.perf_counter() >= began + seconds:
                break
    return done / (time.perf_counter() - began)


def _tune_loaded(
    name: str | None, dtype: str, texts: list[str], callers: int, seconds: float
) -> tuple[dict[str, Any], str]:
    def show(trial: Trial) -> None:
        given = " ".join(f"{key}={value}" for key, value in trial.settings.items())
        print(
            f"{given}: {trial.texts_per_second:.0f} texts/s, p99 {trial.p99_ms:.1f} ms",
            file=sys.stderr,
        )

    best, default = tune(load_by_name(name, dtype), texts, callers, seconds, show)
    report = (
        f"Measured with {callers} callers of one text each, {len(texts)} texts:\n"
        f"these settings {best.texts_per_second:.0f} texts/s, p99 {best.p99_ms:.1f} ms; "
        f"the defaults {default.texts_per_second:.0f} texts/s, p99 {default.p99_ms:.1f} ms."
    )
    return best.settings, report


def _in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


class _environment:  # noqa: N801 - reads as a function
    """Sets a variable for the processes that are started inside the block."""

    def __init__(self, name: str, value: str) -> None:
        self._name, self._value = name, value
        self._before = os.environ.get(name)

    def __enter__(self) -> None:
        os.environ[self._name] = self._value

    def __exit__(self, *_: object) -> None:
        if self._before is None:
            del os.environ[self._name]
        else:
            os.environ[self._name] = self._before
