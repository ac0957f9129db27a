"""Content managers as services have them, and an embedder whose meanings are told to it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ai_model_optimizations.testing import FakeEmbedder

DIMENSION = 16


class TopicEmbedder(FakeEmbedder):
    """Texts that share a listed word lie close together; others far apart."""

    def __init__(self, *topics: str, **options: object) -> None:
        super().__init__(DIMENSION, **options)  # type: ignore[arg-type]
        self.topics = topics

    def vector(self, text: str) -> NDArray[np.float32]:
        own = super().vector(text)
        for number, topic in enumerate(self.topics):
            if topic in text.lower():
                axis = np.zeros(DIMENSION, np.float32)
                axis[number] = 1.0
                own = axis + 0.1 * own
                break
        return (own / np.linalg.norm(own)).astype(np.float32)


class OlderManager:
    """Synchronous, keywords first, then a matcher that reads embeddings as lists."""

    def __init__(self, embedder: FakeEmbedder, rows: dict[str, tuple[str, str]]) -> None:
        self.static_responses = {"responses": dict(rows)}
        self.model_manager = embedder
        self.calls: list[object] = []
        self.stats = {"total_queries": 0}
        self.reloads = 0
        self._vectors = {name: list(map(float, embedder.vector(name))) for name in rows}

    def find_response(self, user_message: str) -> tuple[str, str]:
        self.calls.append(user_message)
        self.stats["total_queries"] += 1
        vector = list(map(float, self.model_manager.vector(str(user_message))))
        rows = self.static_responses["responses"]
        for name in rows:
            if sum(a * b for a, b in zip(vector, self._vectors[name], strict=True)) > 0.8:
                return rows[name][0], rows[name][1]
        return f"Sorry, I do not know: {user_message}", "default"

    def reload_content(self) -> str:
        self.reloads += 1
        return "reloaded"

    def clear_cache(self) -> None:
        self.calls.append("cleared")


class OlderManagerWithStats(OlderManager):
    """One that reports."""

    def get_stats(self) -> dict[str, object]:
        return {**self.stats, "kind": "older"}


class WithoutAnything:
    """The least that can be wrapped."""

    def find_response(self, user_message: str) -> tuple[str, str]:
        return user_message[::-1], "reversed"


ROWS = {"refund": ("Refunds take a week.", "semantic"), "open": ("We open at nine.", "keyword")}


def older(cls: type[OlderManager] = OlderManager) -> tuple[OlderManager, TopicEmbedder]:
    """A manager and the embedder that it shares with what wraps it."""
    embedder = TopicEmbedder(*ROWS)
    return cls(embedder, ROWS), embedder


def paraphrases(topic: str, count: int) -> Sequence[str]:
    """Messages of one topic, different words, nothing that a guard would refuse."""
    words = ("please", "kindly", "gladly", "simply", "really", "quickly", "maybe", "surely")
    return [f"about the {topic} {words[i % 8]} {words[i // 8]}" for i in range(count)]
