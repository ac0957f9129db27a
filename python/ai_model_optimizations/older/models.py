"""Which of a model manager's models embeds a text."""

from __future__ import annotations

import time
from numbers import Real
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..content.model_slots import SENTENCE_SLOTS, model_bytes
from ..embedding.engine import Engine, load_by_name
from ..selection.language import detect_language
from .metrics import MIB, ModelPerformanceMetrics

ModelType = Literal["light", "heavy"]


class AdaptiveModelManager:
    """Chooses between a model manager's light and heavy sentence model, without loading them.

    Parameters
    ----------
    model_manager : has ``english_sentence_model`` (light) and ``turkish_sentence_model`` (heavy),
        or one of them
    """

    def __init__(self, model_manager: Any = None) -> None:
        self.model_manager = model_manager
        self.model_performance: dict[str, ModelPerformanceMetrics] = {
            "light": ModelPerformanceMetrics(),
            "heavy": ModelPerformanceMetrics(),
        }

    def select_optimal_model(
        self,
        query: str,
        response_time_requirement: float = 1000,
        quality_priority: bool = False,
    ) -> ModelType:
        """Return "heavy" for Turkish or with `quality_priority`, if it is quick enough.

        Parameters
        ----------
        query : the text
        response_time_requirement : milliseconds; compared with the heavy model's past times
        quality_priority : prefer the better model
        """
        if not isinstance(query, str):
            raise TypeError(f"query: expected str, got {type(query).__name__}")
        if not (quality_priority or detect_language(query) == "tr"):
            return "light"
        taken = self.model_performance["heavy"].average_response_time * 1e3
        return "heavy" if taken <= response_time_requirement else "light"

    def get_model_for_query(self, query: str, **kwargs: Any) -> Any:
        """Return the chosen model, loaded by its manager, or else the other one."""
        first = self.select_optimal_model(query, **kwargs)
        return self.model_of_type(first)

    def model_of_type(self, model_type: ModelType) -> Any:
        """Return the manager's model of a type, or its other one; None if it has neither."""
        names = list(SENTENCE_SLOTS.values())
        for name in names if model_type == "light" else reversed(names):
            model = getattr(self.model_manager, name, None)
            if model is not None:
                return model
        return None

    def update_performance_metrics(
        self, model_type: str, processing_time: float, memory_usage: float
    ) -> None:
        """Record a request's seconds and its model's MiB."""
        if model_type not in self.model_performance:
            raise ValueError(f'model_type: expected "light" or "heavy", got {model_type!r}')
        given = {"processing_time": processing_time, "memory_usage": memory_usage}
        for name, value in given.items():
            if isinstance(value, bool) or not isinstance(value, Real) or not value >= 0:
                raise ValueError(f"{name}: expected a number from 0, got {value!r}")
        metrics = self.model_performance[model_type]
        metrics.observe(processing_time)
        metrics.memory_usage_mb = memory_usage


class PinnedModel:
    """The one model that an `OptimizedAIManager` embeds with, fetched again at each call.

    The first text determines it, and it stays, since vectors of two models must not be mixed.
    Fetching it from the model manager each time lets the manager unload and reload it.
    """

    def __init__(self, adaptive: AdaptiveModelManager) -> None:
        self._adaptive = adaptive
        self.model_type: ModelType | None = None
        self._default: Any = None
        self.space_id: str | None = None

    def choose(self, text: str, quality_priority: bool) -> None:
        """Pin the model, if none is pinned yet."""
        if self.model_type is None:
            self.model_type = self._adaptive.select_optimal_model(
                text, quality_priority=quality_priority
            )

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        """Embed `texts`; called in the batch processor's thread."""
        began = time.perf_counter()
        pinned = self.model_type or "light"
        model = self._adaptive.model_of_type(pinned)
        if model is None and hasattr(self._adaptive.model_manager, "generate_embedding"):
            generate = self._adaptive.model_manager.generate_embedding
            return np.array([generate(text) for text in texts], dtype=np.float32)
        if model is None:
            model = self._default = self._default or load_by_name()
        engine = Engine(model)
        self._check_space(engine.space_id)
        rows = engine.encode(texts)
        taken = (time.perf_counter() - began) / len(texts)
        self._adaptive.update_performance_metrics(pinned, taken, model_bytes(model) / MIB)
        return rows

    def _check_space(self, space_id: str | None) -> None:
        if space_id is not None and self.space_id not in (None, space_id):
            raise ValueError(
                f"the model manager's model changed from the space {self.space_id!r} to "
                f"{space_id!r}; clear_all_caches() begins anew"
            )
        self.space_id = space_id or self.space_id
