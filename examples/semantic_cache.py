"""A semantic cache in front of a slow function, with real text.

    python examples/semantic_cache.py

The embeddings come from all-MiniLM-L6-v2 if it is available, otherwise from a stand-in that counts
words, which is enough to see the cache at work but not to judge its hits.
"""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ai_model_optimizations import SmartCache


class WordCounts:
    """Stands in for a model: texts that share words are similar."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return a row of counts per text."""
        rows = np.zeros((len(texts), 512), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in re.findall(r"\w+", text.lower()):
                row[zlib.crc32(word.encode()) % 512] += 1.0
            row[0] += 1e-3
        return rows


def load_embedder() -> tuple[object, float]:
    """The real model or the stand-in, with a threshold that suits it."""
    from ai_model_optimizations.embedding import EmbeddingModel

    try:
        return EmbeddingModel.load("all-MiniLM-L6-v2"), 0.85
    except (OSError, ImportError, ValueError) as error:
        print(f"(no model here, words are counted instead: {type(error).__name__})\n")
        return WordCounts(), 0.7


def main() -> None:
    embedder, threshold = load_embedder()
    cache = SmartCache(embedder=embedder, threshold=threshold, require_context=True)  # type: ignore[arg-type]

    def slow_answer(question: str) -> str:
        time.sleep(0.3)
        return f"an answer to {question!r}"

    print("Questions of one customer, each before a function that takes 0.3 s:")
    for question in (
        "Is the port open by default after the installation?",
        "Is the port open by default after the installation?",
        "Is the port open by default after installation?",
        "Is the port closed by default after the installation?",
        "Can I withdraw 200 euros at once?",
        "Can I withdraw 900 euros at once?",
        "Hesabımın bildirimlerini nasıl açarım?",
        "Hesabımın bildirimlerini nasıl kapatırım?",
    ):
        start = time.perf_counter()
        answer = cache.get_or_compute(question, slow_answer, context=("customer", 7))
        print(f"  {(time.perf_counter() - start) * 1e3:6.1f} ms  {question}\n{'':13}{answer}")

    print("\nHits that similarity alone would have given, and why they were refused:")
    for refused in cache.rejections():
        print(
            f"  {refused.similarity:.3f} {refused.reason:9s} {refused.query!r} "
            f"is not {refused.candidate!r}"
        )

    print("\nAnother customer sees none of it:")
    question = "Is the port open by default after the installation?"
    print(" ", cache.get(question, context=("customer", 8)))

    stats = cache.stats()
    print(
        f"\n{stats['hits']} hits ({stats['exact_hits']} of the same text), "
        f"{stats['misses']} misses, refused {stats['rejected']}, "
        f"{stats['cost_saved']:.1f} s of computing saved"
    )


if __name__ == "__main__":
    main()
