"""The batch processor with the older interface's method, which takes any model."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..content.serial_executor import SerialExecutor
from ..embedding import BatchEmbeddingProcessor as _Processor
from ..embedding import Embedding
from ..embedding.engine import Engine
from ..embedding.request_queue import Priority
from .metrics import MIB, ModelPerformanceMetrics


class BatchEmbeddingProcessor(_Processor):
    """`embedding.BatchEmbeddingProcessor` with the methods of the older interface.

    It takes the same arguments.
    """

    @functools.cached_property
    def _others(self) -> ModelPerformanceMetrics:
        """The metrics of calls with a model of their own."""
        return ModelPerformanceMetrics()

    @functools.cached_property
    def _executor(self) -> SerialExecutor:
        return SerialExecutor("aimo-batch-other-model")

    async def process_batch_embeddings(
        self, texts: Sequence[str], model: Any = None, priority: Priority = "normal"
    ) -> list[Embedding]:
        """Embed `texts` with `model`, or with the processor's own when it is None.

        Returns
        -------
        One list of floats per text, which carries the model's ``space_id``.

        Raises
        ------
        TypeError, ValueError, TimeoutError, Exception
            As `process_batch`; an error fails the whole call, so no text silently lacks a vector.
        """
        self._check_priority(priority)
        checked = self._as_list(texts)
        self._check_all(checked)
        if model is None:
            vectors = await self.process_batch(checked, priority=priority)
            return [Embedding.from_array(row, self.space_id) for row in vectors]
        if not checked:
            return []
        # Not another processor: it would keep a model alive that its manager wants to unload.
        engine = Engine(model)
        began = time.perf_counter()
        future = self._executor.submit(lambda: self._encode_with(engine, checked))
        try:
            rows = await asyncio.wait_for(asyncio.wrap_future(future), self.timeout)
        except asyncio.TimeoutError:
            raise TimeoutError(f"no vectors for {self.timeout} s") from None
        self._others.observe(time.perf_counter() - began, len(checked))
        return [Embedding.from_array(row, engine.space_id) for row in rows]

    def _encode_with(self, engine: Engine, texts: list[str]) -> NDArray[np.float32]:
        starts = range(0, len(texts), self.batch_size)
        rows = np.concatenate([engine.encode(texts[i : i + self.batch_size]) for i in starts])
        if not np.isfinite(rows).all():
            raise ValueError("the model returned NaN or infinity")
        return rows

    @property
    def performance_metrics(self) -> ModelPerformanceMetrics:
        """A copy of the current metrics."""
        own, cache = self.metrics(), self.metrics()["cache"]
        found = ModelPerformanceMetrics(**asdict(self._others))
        found.observe(own["busy_seconds"], own["requests"])
        found.cache_hits, found.cache_misses = cache["hits"], cache["misses"]
        found.sets = cache["entries"]
        found.memory_usage_mb = cache["bytes"] / MIB
        return found
