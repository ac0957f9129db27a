"""``ai-model-optimizations demo``: the main job on real text, measured as it runs.

The texts are the docstrings of Python's standard library: real English that every machine has.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .embedding import EmbeddingModel
from .embedding.lookup import DEFAULT_MODEL
from .quantization import ModelQuantizer
from .report import chat_messages, compare, table

#: Modules whose import has side effects, or needs what may be missing.
_SKIPPED = {"antigravity", "this", "idlelib", "turtle", "turtledemo", "tkinter", "lib2to3", "test"}

_MESSAGES = 150
_SECONDS = 20.0  # of the messages; a loaded machine asks fewer

QUESTIONS = (
    "How do I read a compressed archive?",
    "run a task in another process",
    "What is the average of a list of numbers?",
)


def add_command(commands: Any) -> None:
    """Register ``demo`` with argparse."""
    parser = commands.add_parser("demo", help="embed real text and show what it takes")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a folder or a name")
    parser.add_argument("--texts", type=int, default=1000, help="how many texts (%(default)s)")
    parser.add_argument("--ask", help="a question; default: asks on a terminal")
    parser.add_argument(
        "--plain", action="store_true", help="leave sentence-transformers out even if installed"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Embed, measure, print the table, answer questions."""
    if options.texts < 1:
        raise ValueError(f"--texts: expected a positive number, got {options.texts}")
    texts = docstrings(options.texts)
    full = EmbeddingModel.load(options.model, dtype="f32", on_truncate="ignore")
    small = ModelQuantizer().quantize_model(full)
    tokens = int(full.count_tokens(texts).sum())
    cpu = _core.cpu_info()
    threads = _core.thread_count()
    print(f"{len(texts)} texts, {tokens} tokens; row {cpu['row']}, {threads} threads\n")
    print(f"{'':34}{'weights':>10}{'texts/s':>10}{'tokens/s':>10}{'cosine':>10}")
    reference: NDArray[np.float32] | None = None
    if not options.plain and importlib.util.find_spec("sentence_transformers") is not None:
        theirs = _sentence_transformer(str(full.path))
        megabytes = sum(p.numel() * p.element_size() for p in theirs.parameters()) / 1e6
        reference = _measure(
            "sentence-transformers f32",
            megabytes,
            lambda t: np.asarray(theirs.encode(list(t)), dtype=np.float32),
            texts,
            tokens,
            None,
        )
    vectors = small.encode(texts[:1])
    for model in (full, small):
        label = f"ai-model-optimizations {model.dtype}"
        vectors = _measure(label, model.memory_bytes / 1e6, model.encode, texts, tokens, reference)
        reference = vectors if reference is None else reference
    print()
    for question in _questions(options.ask):
        _answer(small, question, texts, vectors)
    print("\nA chat service before and after, the same messages asked of both:\n")
    engine = "ours" if options.plain else "auto"
    messages = chat_messages(_MESSAGES)
    print(table(compare(messages, options.model, plain_engine=engine, seconds=_SECONDS)))
    return 0


def docstrings(count: int) -> list[str]:
    """Return the first ``count`` different docstrings of the standard library, by module name."""
    found: dict[str, None] = {}
    for text in _all_docstrings():
        found.setdefault(text)
        if len(found) == count:
            break
    return list(found)


def _all_docstrings() -> Iterator[str]:
    modules = sorted(m.name for m in pkgutil.iter_modules() if m.name in sys.stdlib_module_names)
    for name in modules:
        if name in _SKIPPED or name.startswith("_"):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                module = importlib.import_module(name)
            except ImportError:
                continue
        for _, value in sorted(vars(module).items()):
            if getattr(value, "__module__", None) == name and callable(value):
                text = " ".join((inspect.getdoc(value) or "").split())
                if len(text) >= 40:
                    yield text


def _sentence_transformer(path: str) -> Any:
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()

    torch.set_num_threads(_core.thread_count())
    return SentenceTransformer(path, device="cpu")


def _measure(
    label: str,
    megabytes: float,
    encode: Callable[[Sequence[str]], NDArray[np.float32]],
    texts: Sequence[str],
    tokens: int,
    reference: NDArray[np.float32] | None,
) -> NDArray[np.float32]:
    encode(texts[:32])
    start = time.perf_counter()
    vectors = encode(texts)
    seconds = time.perf_counter() - start
    cosine = "1"
    if reference is not None:
        norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(reference, axis=1)
        cosine = f"{float(np.min(np.sum(vectors * reference, axis=1) / norms)):.6f}"
    speed = f"{len(texts) / seconds:>10.0f}{tokens / seconds:>10.0f}"
    print(f"{label:34}{megabytes:>7.1f} MB{speed}{cosine:>10}", flush=True)
    return vectors


def _questions(asked: str | None) -> Iterator[str]:
    if asked is not None:
        yield asked
    elif sys.stdin.isatty() and sys.stdout.isatty():
        print("Ask for something in the standard library (an empty line ends):")
        while question := input("> ").strip():
            yield question
    else:
        yield from QUESTIONS


def _answer(
    model: EmbeddingModel, question: str, texts: Sequence[str], vectors: NDArray[np.float32]
) -> None:
    start = time.perf_counter()
    vector = model.encode(question)
    milliseconds = (time.perf_counter() - start) * 1e3
    cosines = vectors @ vector
    print(f"{question}   (embedded in {milliseconds:.1f} ms)")
    for index in np.argsort(-cosines, kind="stable")[:3]:
        print(f"  {cosines[index]:.3f}  {texts[index][:90]}")
