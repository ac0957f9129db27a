"""What the tests of BatchEmbeddingProcessor share."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np

from ai_model_optimizations.testing import FakeEmbedder


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 60))


def expected(model: FakeEmbedder, texts: list[str]) -> np.ndarray:
    return np.stack([model.vector(text) for text in texts])


def no_thread(thread: threading.Thread) -> None:
    """In place of ``threading.Thread.start``: a process that has no more of them."""
    raise RuntimeError("can't start new thread")


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("the condition never became true")
