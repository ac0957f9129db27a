"""Time from import to the first vector, and the private memory this takes.

    python benchmarks/bench_loading.py [--model PATH] [--threads N] [--rounds N]

Each variant runs in its own processes, in turn. Time starts before the library's import. Private
memory is the growth of Private_Dirty from after the import to the first vector, which is what a
second worker on the machine adds. The first vectors are compared before anything is reported.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness

TEXT = "How do I open an account?"

CHILD = """
import json, sys, time
def private():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))
start = time.perf_counter()
{imports}
imported, before = time.perf_counter(), private()
loading = time.perf_counter()
{load}
loaded = time.perf_counter()
vector = model.encode({text!r})
done = time.perf_counter()
figures = {{"import": imported - start, "load": loaded - loading, "first": done - loaded}}
print(json.dumps({{**figures, "private_mb": (private() - before) / 1024,
                  "vector": [float(x) for x in vector]}}))
"""

OURS = "from ai_model_optimizations import EmbeddingModel"


def ways(model: Path, work: Path) -> dict[str, tuple[str, str, dict[str, str]]]:
    """Imports, loading code and environment of each variant."""
    from ai_model_optimizations import EmbeddingModel

    EmbeddingModel.load(model, dtype="f16").save(work / "packed")
    folder = f"model = EmbeddingModel.load({str(model)!r}, dtype='f16')"
    packed = f"model = EmbeddingModel.load({str(work / 'packed')!r})"
    result: dict[str, tuple[str, str, dict[str, str]]] = {
        "ours f16, folder": (OURS, folder, {}),
        "ours f16, AIMO_CACHE_DIR": (OURS, folder, {"AIMO_CACHE_DIR": str(work / "cache")}),
        "ours f16, packed": (OURS, packed, {}),
    }
    try:
        import sentence_transformers  # noqa: F401 - checks that it is installed
    except ImportError as error:
        harness.missing("sentence-transformers", error)
    else:
        imports = "from sentence_transformers import SentenceTransformer"
        load = f"model = SentenceTransformer({str(model)!r}, device='cpu')"
        result["sentence-transformers fp32"] = (imports, load, {})
    return result


def run(way: tuple[str, str, dict[str, str]]) -> dict[str, Any]:
    """Run one process and return what it printed."""
    imports, load, environment = way
    code = CHILD.format(imports=imports, load=load, text=TEXT)
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    figures: dict[str, Any] = json.loads(out.splitlines()[-1])
    figures["total"] = figures["import"] + figures["load"] + figures["first"]
    return figures


def cosine(a: list[float], b: list[float]) -> float:
    norm = sum(x * x for x in a) ** 0.5 * sum(x * x for x in b) ** 0.5
    return sum(x * y for x, y in zip(a, b, strict=True)) / norm


def main() -> None:
    from ai_model_optimizations.embedding.lookup import DEFAULT_MODEL, find_model

    parser = argparse.ArgumentParser(description="Seconds and memory to the first vector")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    harness.set_threads(arguments.threads)
    model = arguments.model or find_model(DEFAULT_MODEL)

    runs: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as work:
        chosen = ways(model, Path(work))
        for round_number in range(arguments.rounds + 1):
            for name, way in chosen.items():
                figures = run(way)
                if round_number > 0:  # the first run fills the page cache and AIMO_CACHE_DIR
                    runs.setdefault(name, []).append(figures)
    vectors = [figures["vector"] for all_runs in runs.values() for figures in all_runs]
    assert min(cosine(vectors[0], vector) for vector in vectors) > 0.9999, "vectors differ"

    results = {}
    for name, all_runs in runs.items():
        results[name] = {
            key: harness.summary([figures[key] for figures in all_runs])
            for key in ("import", "load", "first", "total", "private_mb")
        }
        parts = {key: statistics.median(f[key] for f in all_runs) for key in results[name]}
        print(
            f"{name:28} {parts['total']:.2f} s (import {parts['import']:.2f}, "
            f"load {parts['load']:.3f}, first {parts['first']:.3f}), "
            f"{parts['private_mb']:.1f} MB private"
        )
    harness.save("loading", {"unit": "seconds; MB of 2^20 bytes", "ways": results})


if __name__ == "__main__":
    main()
