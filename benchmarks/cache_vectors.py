"""Embeddings for the cache's benchmarks: real texts through a real model, enlarged where needed.

The texts are all questions of banking77 and clinc150 and all glosses of WordNet (Debian's
wordnet-base), from whichever folders are given. A file keeps the vectors between runs.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

#: Size of the noise that `enlarge` adds to a repeated row, relative to its norm.
NOISE = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where texts and vectors are."""
    parser.add_argument("--banking77", type=Path, help="folder with train.csv and test.csv")
    parser.add_argument("--clinc150", type=Path, help="folder with data_full.json")
    parser.add_argument("--wordnet", type=Path, help="folder with data.noun and its neighbours")
    parser.add_argument("--model", default="all-MiniLM-L6-v2")
    parser.add_argument(
        "--embeddings", type=Path, help=".npy file of vectors, made from the texts if missing"
    )


def _texts(args: argparse.Namespace) -> Iterator[str]:
    if args.banking77 is not None:
        for name in ("train.csv", "test.csv"):
            with (args.banking77 / name).open(encoding="utf-8", newline="") as file:
                yield from (row["text"] for row in csv.DictReader(file))
    if args.clinc150 is not None:
        splits = json.loads((args.clinc150 / "data_full.json").read_text(encoding="utf-8"))
        yield from (text for rows in splits.values() for text, _ in rows)
    if args.wordnet is not None:
        for kind in ("noun", "verb", "adj", "adv"):
            with (args.wordnet / f"data.{kind}").open(encoding="utf-8") as file:
                # The licence comes before the data, indented.
                lines = (line for line in file if not line.startswith(" "))
                yield from (line.split(" | ", 1)[1].strip() for line in lines)


def real_vectors(args: argparse.Namespace) -> tuple[F32, F32]:
    """Shuffled vectors (n, dim) of different texts: nine tenths to store, a tenth as queries."""
    if args.embeddings is not None and args.embeddings.exists():
        vectors = np.load(args.embeddings).astype(np.float32)
    else:
        from ai_model_optimizations import EmbeddingModel

        texts = list(dict.fromkeys(_texts(args)))
        if not texts:
            raise SystemExit("give --embeddings, or --banking77, --clinc150, --wordnet")
        print(f"embedding {len(texts)} texts", flush=True)
        vectors = np.asarray(EmbeddingModel.load(args.model).encode(texts), np.float32)
        if args.embeddings is not None:
            np.save(args.embeddings, vectors)
    np.random.default_rng(0).shuffle(vectors)
    held_out = len(vectors) // 10
    return vectors[held_out:], vectors[:held_out]


def enlarge(base: F32, rows: int) -> F32:
    """Repeat the rows of `base` with noise until there are `rows`, all of norm 1."""
    rng = np.random.default_rng(rows)
    out = np.empty((rows, base.shape[1]), np.float32)
    out[: len(base)] = base[:rows]
    for start in range(len(base), rows, len(base)):
        part = base[: min(len(base), rows - start)]
        noise = rng.standard_normal(part.shape, np.float32)
        noise *= NOISE / np.sqrt(part.shape[1])
        noise += part
        noise /= np.linalg.norm(noise, axis=1, keepdims=True)
        out[start : start + len(part)] = noise
    return out


def misses(stored: F32, asked: F32, threshold: float, count: int) -> F32:
    """The first `count` of `asked` whose best score stays clearly below the threshold."""
    kept: list[F32] = []
    for start in range(0, len(asked), 512):
        block = asked[start : start + 512]
        best = np.full(len(block), -1.0, np.float32)
        for first in range(0, len(stored), 100_000):
            part = stored[first : first + 100_000]
            np.maximum(best, np.max(block @ part.T, axis=1), out=best)
        kept.append(block[best < threshold - 0.01])
        if sum(map(len, kept)) >= count:
            break
    return np.ascontiguousarray(np.concatenate(kept)[:count])
