"""all-MiniLM-L6-v2 from text to unit vectors: ours against the peers that are installed.

    python benchmarks/bench_encoder.py [--threads N] [--texts N] [--rounds N] [--engines WORD ...]

Every engine runs in its own process with the same number of threads; they take turns. Vectors are
first compared with those of sentence-transformers; then throughput for three lengths of text, the
latency of one short text, and the memory after loading are measured.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import harness
import numpy as np
import texts as text_sets

REFERENCE = "sentence-transformers fp32"

# With AIMO_CPU set, peers are limited to the same instructions where they allow it.
ONEDNN_ISA = {
    "avx2": "AVX2",
    "avx512": "AVX512_CORE",
    "avx512_vnni": "AVX512_CORE_VNNI",
    "avx512_bf16": "AVX512_CORE_BF16",
}


def same_instructions() -> dict[str, str]:
    """Environment of a peer's process; empty on the machine's own row."""
    row = os.environ.get("AIMO_CPU", "")
    settings = {
        "ONEDNN_MAX_CPU_ISA": ONEDNN_ISA.get(row),
        "CT2_FORCE_CPU_ISA": "AVX2" if row == "avx2" else None,
        "ATEN_CPU_CAPABILITY": "avx2" if row == "avx2" else None,
    }
    return {name: value for name, value in settings.items() if value is not None}


# --- One engine's process ------------------------------------------------------------------------


def serve(load_engine: Callable[[], Any], channel: int, sets_file: str) -> None:
    """Load one engine, then serve the parent's requests; one JSON line each way.

    Answers use a separate descriptor, because libraries print to stdout.
    """
    import psutil

    answers = os.fdopen(channel, "w", buffering=1)
    sets: dict[str, list[str]] = json.loads(Path(sets_file).read_text())

    def answer(**fields: Any) -> None:
        print(json.dumps(fields), file=answers)

    process = psutil.Process()
    import tokenizers  # noqa: F401  the common base: numpy and tokenizers

    base = process.memory_info().rss
    start = time.perf_counter()
    engine = load_engine()
    try:
        engine.load()
        engine.encode(["One text, so that what loads lazily is loaded."])
    except Exception as error:  # a peer may fail in any way: it is named and left out
        reason = str(error).strip().splitlines() or [""]
        answer(error=f"{type(error).__name__}: {reason[0]}")
        return
    answer(load_seconds=time.perf_counter() - start, rss=process.memory_info().rss - base)
    for line in sys.stdin:
        request = json.loads(line)
        texts = sets[request["set"]]
        if request["save"]:
            np.save(request["save"], engine.encode(texts))
            answer(saved=request["save"])
        elif request["one_by_one"]:
            seconds = []
            for i in range(request["one_by_one"]):
                begin = time.perf_counter()
                engine.encode([texts[i % len(texts)]])
                seconds.append(time.perf_counter() - begin)
            answer(seconds=float(np.median(seconds)), p99=float(np.quantile(seconds, 0.99)))
        else:
            begin = time.perf_counter()
            engine.encode(texts)
            answer(seconds=time.perf_counter() - begin)


class Worker:
    """The parent's end of an engine's process.

    Parameters
    ----------
    name, sets_file, script : what the process serves
    limit : seconds to wait for an answer before the process is killed; None waits for ever
    """

    def __init__(
        self, name: str, sets_file: Path, script: str = __file__, limit: float | None = None
    ) -> None:
        self.name = name
        self.limit = limit
        reading, writing = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, script, "--serve", name, str(writing), str(sets_file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[writing],
            text=True,
            env={**os.environ, **same_instructions()},
        )
        os.close(writing)
        self.answers = os.fdopen(reading)

    @functools.cached_property
    def loaded(self) -> dict[str, Any]:
        """The answer to loading; several workers may load at once, until one is asked."""
        return self._read()

    def _read(self) -> dict[str, Any]:
        ready, _, _ = select.select([self.answers], [], [], self.limit)
        if not ready:
            self.process.kill()
            return {"error": f"no answer within {self.limit} s"}
        line = self.answers.readline()
        if not line:
            return {"error": f"its process ended with {self.process.wait()}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def request(self, text_set: str, save: str = "", one_by_one: int = 0) -> dict[str, Any]:
        """Embed a set, or so many of its texts one by one; returns the answer."""
        assert self.process.stdin is not None
        request = {"set": text_set, "save": save, "one_by_one": one_by_one}
        print(json.dumps(request), file=self.process.stdin, flush=True)
        answer = self._read()
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {answer['error']}")
        return answer

    def ask(self, text_set: str, save: str = "", one_by_one: int = 0) -> float:
        """Embed a set; returns the seconds it took (0 when saving), or one text's median."""
        return float(self.request(text_set, save, one_by_one).get("seconds", 0.0))

    def close(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.answers.close()


# --- The measurement -----------------------------------------------------------------------------


def start_workers(words: list[str], sets_file: Path) -> dict[str, Worker]:
    """A process for each engine that can be loaded here."""
    import encoder_engines

    row = harness.machine()["row"]
    workers = {}
    for name in encoder_engines.ENGINES:
        if words and not any(word in name for word in words):
            continue
        if row not in encoder_engines.NEEDS_ROW.get(name, (row,)):
            harness.missing(name, f"no fast path on row {row}")
            continue
        worker = Worker(name, sets_file)
        if "error" in worker.loaded:
            harness.missing(name, worker.loaded["error"])
            worker.close()
            continue
        workers[name] = worker
    return workers


def cosines(
    workers: dict[str, Worker], sets: Iterable[str]
) -> tuple[str, dict[str, float]]:
    """The reference's name, and each engine's smallest cosine with it over all sets."""
    reference = REFERENCE if REFERENCE in workers else "ours f32"
    if reference not in workers:
        raise SystemExit("neither sentence-transformers nor ours f32 is there to compare with")
    smallest = dict.fromkeys(workers, 1.0)
    with tempfile.TemporaryDirectory() as folder:
        for text_set in sets:
            paths = {name: str(Path(folder) / f"{i}.npy") for i, name in enumerate(workers)}
            for name, worker in workers.items():
                worker.ask(text_set, save=paths[name])
            expected = np.load(paths[reference]).astype(np.float64)
            for name, path in paths.items():
                got = np.load(path).astype(np.float64)
                norms = np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1)
                cosine = float(((got * expected).sum(axis=1) / norms).min())
                smallest[name] = min(smallest[name], cosine)
    return reference, smallest


def least_cosine(name: str) -> float:
    """The cosine below which an engine's result counts as wrong; nothing is timed then."""
    if "int8" in name:
        return 0.9
    return 0.9999


def count_tokens(sets: dict[str, list[str]]) -> dict[str, int]:
    """Tokens of each set, the two special ones included; the same number for every engine."""
    import encoder_engines

    engine = encoder_engines.TokenEngine()
    engine.load_tokenizer()
    return {
        name: sum(len(encoding.ids) for encoding in engine.tokenizer.encode_batch_fast(texts))
        for name, texts in sets.items()
    }


def measure(
    workers: dict[str, Worker], sets: dict[str, list[str]], rounds: int
) -> dict[str, Any]:
    """Check, then time; returns what the result file holds."""
    reference, smallest = cosines(workers, sets)
    for name, cosine in smallest.items():
        if cosine < least_cosine(name):
            raise SystemExit(f"{name}: cosine {cosine:.6f} with {reference}: nothing is timed")
    tokens = count_tokens(sets)
    engines: dict[str, Any] = {
        name: {
            "min_cosine": smallest[name],
            "load_seconds": worker.loaded["load_seconds"],
            "rss_mb": worker.loaded["rss"] / 1e6,
            "tokens_per_second": {},
        }
        for name, worker in workers.items()
    }
    for text_set in sets:
        timings = harness.interleave(
            {n: (lambda w=w, s=text_set: w.ask(s)) for n, w in workers.items()}, rounds
        )
        for name, seconds in timings.items():
            engines[name]["tokens_per_second"][text_set] = {
                "median": tokens[text_set] / seconds["median"],
                "min": tokens[text_set] / seconds["max"],
                "max": tokens[text_set] / seconds["min"],
            }
            print(f"{text_set} {name}: {tokens[text_set] / seconds['median']:.0f} tokens/s")
    one = harness.interleave(
        {n: (lambda w=w: w.ask("short", one_by_one=40)) for n, w in workers.items()}, rounds
    )
    for name, seconds in one.items():
        engines[name]["one_text_ms"] = {k: 1000 * v for k, v in seconds.items()}
    mean_tokens = {name: total / len(sets[name]) for name, total in tokens.items()}
    return {
        "texts": {name: len(texts) for name, texts in sets.items()},
        "mean_tokens": mean_tokens,
        "reference": reference,
        "engines": engines,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Embedding throughput compared with the peers")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--texts", type=int, default=256, help="texts of each length")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engines", nargs="+", default=[], help="parts of engine names")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        import encoder_engines

        name, channel, sets_file = arguments.serve
        serve(encoder_engines.ENGINES[name], int(channel), sets_file)
        return
    harness.set_threads(arguments.threads)
    sets = {name: text_sets.text_set(name, arguments.texts) for name in text_sets.LENGTHS}
    with tempfile.TemporaryDirectory() as folder:
        sets_file = Path(folder) / "sets.json"
        sets_file.write_text(json.dumps(sets))
        workers = start_workers(arguments.engines, sets_file)
        try:
            results = measure(workers, sets, arguments.rounds)
        finally:
            for worker in workers.values():
                worker.close()
    harness.save("encoder", results)


if __name__ == "__main__":
    main()
