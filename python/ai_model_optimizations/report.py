"""``ai-model-optimizations report``: a plain service against the optimized one, measured live.

The plain service is what many people write first: a model at full precision, one message at a
time, its vector compared with each answer's in Python. The optimized one is the same service with
its model quantized, behind `OptimizedContentManager.wrap`. Both get the same messages, in the same
order.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import itertools
import json
import random
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from . import _core
from ._files import check_writable
from .cache.contexts import Context
from .content.answers import Answer
from .content.model_slots import model_bytes
from .embedding import BatchEmbeddingProcessor, EmbeddingModel
from .embedding.lookup import DEFAULT_MODEL, find_model
from .embedding.tune import read_lines
from .optimized_content_manager import OptimizedContentManager
from .quantization import ModelQuantizer

T = TypeVar("T")

#: For each topic, the answer and the phrases that ask for it.
TOPICS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "password": ("Reset it under Settings, Security.", (
        "reset my password", "change my password", "get a new password")),
    "delivery": ("Orders arrive within two working days.", (
        "track my parcel", "see where my parcel is", "find out where my delivery is")),
    "refund": ("We refund within a week after the goods came back.", (
        "get a refund", "get my money back", "be refunded for my order")),
    "card": ("Block it in the app; a new one comes by post.", (
        "replace my lost card", "report a lost card", "get a new card for a lost one")),
    "invoice": ("Invoices are under Account, Documents.", (
        "download my invoice", "find my invoice", "get a copy of my invoice")),
    "address": ("Change it under Account, Personal data.", (
        "change my address", "update my address", "enter my new address")),
    "cancel": ("Subscriptions end at the end of the month.", (
        "cancel my subscription", "end my subscription", "stop my subscription")),
    "voucher": ("Enter the code in the last step of an order.", (
        "use a voucher", "redeem a voucher code", "apply my voucher")),
}  # fmt: skip
FRAMES = (
    "How do I {}?", "How can I {}?", "I want to {}, what must I do?", "Please tell me how to {}.",
    "What is the best way to {}?", "Can you help me to {}?", "hi, I need to {}", "how to {}",
)  # fmt: skip
_THRESHOLD = 0.3  # of the plain service: below it, it gives the default answer
TURN = 10  # messages that one side gets before the other's turn
_CHART = (640, 300)


class PlainService:
    """A content manager in the older style: one text at a time, vectors compared as lists.

    Parameters
    ----------
    model : has ``encode(texts)``
    texts : the text that stands for each answer, by name
    answers : the answers, by the same names
    """

    def __init__(self, model: Any, texts: Mapping[str, str], answers: Mapping[str, str]) -> None:
        self.model = model
        self.answers = dict(answers)
        self.names = list(texts)
        rows = np.asarray(model.encode(list(texts.values())), dtype=np.float32)
        self.vectors = [_unit(row).tolist() for row in rows]

    def find_response(self, user_message: str) -> Answer:
        """Return the answer whose text is nearest, or the default."""
        vector = _unit(np.asarray(self.model.encode([user_message])[0])).tolist()
        scores = [sum(a * b for a, b in zip(vector, other, strict=True)) for other in self.vectors]
        best = max(range(len(scores)), key=scores.__getitem__)
        if scores[best] < _THRESHOLD:
            return f"I do not know about: {user_message}", "default"
        return self.answers[self.names[best]], "semantic"


def _unit(row: Any) -> Any:
    return row / max(float(np.linalg.norm(row)), 1e-12)


@dataclass
class Side:
    """The measurements of one service, in seconds and MB of a million bytes."""

    name: str
    model_mb: float
    latencies: list[float] = field(default_factory=list, repr=False)
    answers: list[Any] = field(default_factory=list, repr=False)

    @property
    def messages(self) -> int:
        """How many messages it was asked."""
        return len(self.latencies)

    @property
    def throughput(self) -> float:
        """Messages per second, one after another."""
        return self.messages / sum(self.latencies)

    def percentile(self, q: float) -> float:
        """Return the milliseconds within which `q` percent of the messages were answered."""
        return float(np.percentile(self.latencies, q)) * 1e3

    def to_dict(self) -> dict[str, Any]:
        """Return the measurements, ready for JSON."""
        return {
            "name": self.name,
            "model_mb": self.model_mb,
            "messages": self.messages,
            "messages_per_second": self.throughput,
            **{f"p{q}_ms": self.percentile(q) for q in (50, 95, 99)},
        }


@dataclass
class Hits:
    """How messages were answered; a hit is wrong if the plain service answers differently."""

    messages: int
    repeats: int
    exact_hits: int
    semantic_hits: int
    wrong_hits: int

    @property
    def novel(self) -> int:
        """Messages whose text had not occurred before."""
        return self.messages - self.repeats

    @property
    def novel_hits(self) -> int:
        """A lower bound on novel texts that were hits: at most every repeat was a hit too."""
        return max(self.exact_hits + self.semantic_hits - self.repeats, 0)


@dataclass
class Comparison:
    """Both sides on the same messages."""

    plain: Side
    optimized: Side
    hits: Hits
    machine: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return {
            "plain": self.plain.to_dict(),
            "optimized": self.optimized.to_dict(),
            "hits": {
                **asdict(self.hits),
                "novel": self.hits.novel,
                "novel_hits": self.hits.novel_hits,
            },
            "machine": self.machine,
        }


def chat_messages(count: int, seed: int = 0, zipf: float = 1.0) -> list[str]:
    """Draw messages from the built-in topics: some phrasings are much more common than others."""
    numbers = random.Random(seed)
    texts = [
        frame.format(wish)
        for (_, wishes), frame in itertools.product(TOPICS.values(), FRAMES)
        for wish in wishes
    ]
    numbers.shuffle(texts)
    weights = [1 / (rank + 1) ** zipf for rank in range(len(texts))]
    return numbers.choices(texts, weights, k=count)


def ask_plain(service: PlainService, messages: Iterable[str], side: Side) -> None:
    """Ask a plain service, one message after another, and add to its side."""
    for message in messages:
        start = time.perf_counter()
        side.answers.append(service.find_response(message))
        side.latencies.append(time.perf_counter() - start)


def ask_optimized(
    manager: OptimizedContentManager, asked: Iterable[tuple[str, Context]], side: Side
) -> None:
    """Ask a manager messages with their contexts, one after another, and add to its side."""

    async def ask() -> None:
        for message, context in asked:
            start = time.perf_counter()
            answer = await manager.find_response_optimized(message, context=context)
            side.latencies.append(time.perf_counter() - start)
            side.answers.append(answer)

    asyncio.run(ask())


def measure(
    plain_service: PlainService,
    manager: OptimizedContentManager,
    messages: Sequence[str],
    contexts: Sequence[Context] | None = None,
    names: tuple[str, str] = ("plain", "optimized"),
    seconds: float | None = None,
    plain_every: int = 1,
) -> tuple[Side, Side]:
    """Ask both services the same messages, in turns, so that disturbances affect both.

    After `seconds`, if given, no further messages are asked. The plain service, which takes equally
    long for each message, gets only one turn in `plain_every`.
    """
    walls = contexts or [""] * len(messages)
    plain = Side(names[0], model_bytes(plain_service.model) / 1e6)
    optimized = Side(names[1], model_bytes(manager.wrapped.model) / 1e6)
    plain_service.find_response("warm up")
    asyncio.run(manager.warmup())
    end = None if seconds is None else time.monotonic() + seconds
    for start in _progress(range(0, len(messages), TURN), f"messages / {TURN}"):
        if end is not None and time.monotonic() > end:
            break
        part = messages[start : start + TURN]
        if start % (TURN * plain_every) == 0:
            ask_plain(plain_service, part, plain)
        ask_optimized(manager, zip(part, walls[start : start + TURN], strict=True), optimized)
    return plain, optimized


def count_hits(
    manager: OptimizedContentManager, messages: Sequence[Any], plain: Side, optimized: Side
) -> Hits:
    """Compare the answers and read the manager's counters."""
    counted = manager.get_optimization_statistics()["optimization_stats"]
    wrong = sum(a != b for a, b in zip(plain.answers, optimized.answers, strict=True))
    return Hits(
        messages=len(messages),
        repeats=len(messages) - len(set(messages)),
        exact_hits=counted["exact_hits"],
        semantic_hits=counted["semantic_hits"],
        wrong_hits=wrong,
    )


def compare(
    messages: Sequence[str],
    model: str = DEFAULT_MODEL,
    *,
    plain_engine: str = "auto",
    texts: Mapping[str, str] | None = None,
    answers: Mapping[str, str] | None = None,
    seconds: float | None = None,
) -> Comparison:
    """Measure the plain service, then the optimized one, on the same messages.

    Parameters
    ----------
    messages : in the order in which they are asked
    model : a name or path
    plain_engine : "sentence-transformers", "ours" for our f32 path, or "auto" for the first if it
        is installed
    texts, answers : of the service; the built-in topics when None
    seconds : time after which no further messages are asked; None for no limit
    """
    if texts is None or answers is None:
        texts = {name: f"{'; '.join(wishes)}" for name, (_, wishes) in TOPICS.items()}
        answers = {name: answer for name, (answer, _) in TOPICS.items()}
    full = EmbeddingModel.load(model, dtype="f32")
    small = ModelQuantizer().quantize_model(full)
    before, name = plain_model(full, plain_engine)
    manager = optimized_service(small, texts, answers)
    plain, optimized = measure(
        PlainService(before, texts, answers),
        manager,
        messages,
        names=(name, f"optimized, {small.dtype}"),
        seconds=seconds,
    )
    messages = messages[: plain.messages]
    machine = {"row": _core.cpu_info()["row"], "threads": _core.thread_count()}
    return Comparison(plain, optimized, count_hits(manager, messages, plain, optimized), machine)


def optimized_service(
    model: EmbeddingModel, texts: Mapping[str, str], answers: Mapping[str, str]
) -> OptimizedContentManager:
    """Return the plain service over `model`, wrapped; both get their vectors from one processor.

    So a message that is looked up by meaning and then answered by the service is embedded once.
    """
    processor = BatchEmbeddingProcessor(model=model)
    service = PlainService(Shared(processor, model.memory_bytes), texts, answers)
    return OptimizedContentManager.wrap(service, embedder=processor)


class Shared:
    """A model that takes its vectors from a processor."""

    def __init__(self, processor: BatchEmbeddingProcessor, memory_bytes: int) -> None:
        self.encode = processor.process_batch_sync
        self.memory_bytes = memory_bytes


def plain_model(full: EmbeddingModel | None, engine: str) -> tuple[Any, str]:
    """Return the plain service's model and the service's name.

    Parameters
    ----------
    full : our model at full precision; None loads it if needed
    engine : as in `compare`
    """
    if engine not in ("auto", "ours", "sentence-transformers"):
        raise ValueError(f"plain: expected auto, ours or sentence-transformers, got {engine!r}")
    installed = importlib.util.find_spec("sentence_transformers") is not None
    if engine == "sentence-transformers" and not installed:
        raise ValueError("plain: sentence-transformers is not installed")
    if engine == "ours" or not installed:
        return full or EmbeddingModel.load(dtype="f32"), "plain, our f32 one by one"
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(_core.thread_count())
    path = find_model(DEFAULT_MODEL) if full is None else full.path
    model = SentenceTransformer(str(path), device="cpu")
    return _Silent(model), "plain, sentence-transformers"


class _Silent:
    """A SentenceTransformer without progress bars."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def encode(self, texts: list[str]) -> Any:
        return self.model.encode(texts, show_progress_bar=False)


def _progress(items: Sequence[T], what: str) -> Iterable[T]:
    """Show a progress bar on a terminal, if tqdm is installed."""
    if not sys.stderr.isatty() or importlib.util.find_spec("tqdm") is None:
        return items
    from tqdm.auto import tqdm

    bar: Iterable[T] = tqdm(items, desc=what, leave=False)
    return bar


# ---- showing ----


def table(found: Comparison) -> str:
    """Return the results as a text table."""
    a, b, hits = found.plain.to_dict(), found.optimized.to_dict(), found.hits
    rows = [("", found.plain.name, found.optimized.name, "")]
    for label, key, digits in (
        ("model memory, MB", "model_mb", 1),
        ("messages per second", "messages_per_second", 1),
        ("response p50, ms", "p50_ms", 3),
        ("response p95, ms", "p95_ms", 3),
        ("response p99, ms", "p99_ms", 3),
    ):
        change = f"{b[key] / a[key]:.1f}x" if "second" in key else f"{b[key] / a[key] - 1:+.0%}"
        rows.append((label, f"{a[key]:.{digits}f}", f"{b[key]:.{digits}f}", change))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        f"{row[0]:<{widths[0]}}  " + "  ".join(f"{row[i]:>{widths[i]}}" for i in (1, 2, 3))
        for row in rows
    ]
    total = max(hits.messages, 1)
    lines += [
        "",
        f"{hits.messages} messages, {hits.novel} of them new; row {found.machine['row']}, "
        f"{found.machine['threads']} threads",
        f"hits: {(hits.exact_hits + hits.semantic_hits) / total:.1%} of all; "
        f"exact repeats {hits.exact_hits / total:.1%}, by meaning {hits.semantic_hits / total:.1%}"
        f"; of the new texts at least {hits.novel_hits / max(hits.novel, 1):.1%}",
        f"wrong (not the plain service's answer): {hits.wrong_hits} "
        f"({hits.wrong_hits / total:.2%} of answers)",
    ]
    return "\n".join(lines)


def svg(found: Comparison) -> str:
    """Draw both sides' response times over the share of messages, on a log scale."""
    width, height = _CHART
    sides = (found.plain, found.optimized)
    low = min(min(side.latencies) for side in sides) * 1e3
    high = max(max(side.latencies) for side in sides) * 1e3
    left, right, top, bottom = 60, width - 20, 40, height - 40
    span = max(np.log10(high / low), 1e-9)

    def y(milliseconds: float) -> float:
        return float(bottom - np.log10(milliseconds / low) / span * (bottom - top))

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>',
        f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="#222"/>',
        f'<text x="{left}" y="{height - 12}">share of messages answered within the time</text>',
    ]
    for power in range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1):
        if low <= 10.0**power <= high:
            parts.append(
                f'<text x="{left - 6}" y="{y(10.0**power) + 4:.1f}" text-anchor="end">'
                f"{10.0**power:g} ms</text>"
            )
    for number, (side, colour) in enumerate(zip(sides, ("#777", "#0b6e4f"), strict=True)):
        points = " ".join(
            f"{left + (right - left) * q / 100:.1f},{y(side.percentile(q)):.1f}"
            for q in range(0, 101, 2)
        )
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        parts.append(
            f'<text x="{left + number * 280}" y="20" fill="{colour}">{escape(side.name)}</text>'
        )
    return "\n".join([*parts, "</svg>\n"])


# ---- the command ----


def add_command(commands: Any) -> None:
    """Register ``report`` with argparse."""
    parser = commands.add_parser("report", help="plain service against optimized, live")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a folder or a name")
    parser.add_argument("--messages", type=Path, help="a file with one message a line")
    parser.add_argument("--count", type=int, default=400, help="built-in messages (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--plain",
        default="auto",
        choices=("auto", "ours", "sentence-transformers"),
        help="what the plain service embeds with",
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--svg", type=Path, help="write a plot to this file")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure, print the table, write the files."""
    for file in (options.json, options.svg):
        if file is not None:
            check_writable(file)
    if options.messages is None:
        if options.count < 1:
            raise ValueError(f"--count: expected a positive number, got {options.count}")
        messages = chat_messages(options.count, options.seed)
    else:
        messages = read_lines(options.messages)
    found = compare(messages, options.model, plain_engine=options.plain)
    print(table(found))
    if options.json is not None:
        options.json.write_text(json.dumps(found.to_dict(), indent=1) + "\n", encoding="utf-8")
    if options.svg is not None:
        options.svg.write_text(svg(found), encoding="utf-8")
    return 0
