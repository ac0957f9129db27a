"""Batches on several threads: each runs once, and failures come out in order."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref

import pytest

from ai_model_optimizations.embedding.batch_threads import for_each_batch


def test_every_batch_runs_once_on_as_many_threads_as_asked_for() -> None:
    together = threading.Barrier(3)
    seen: list[int] = []

    def work(start: int) -> None:
        if start < 3:
            together.wait(timeout=30)  # breaks unless three threads are here
        seen.append(start)

    for_each_batch(range(50), work, 3)
    assert sorted(seen) == list(range(50))


def test_one_thread_runs_them_in_order_and_none_is_fine() -> None:
    seen: list[int] = []
    for_each_batch(range(5), seen.append, 1)
    for_each_batch([], seen.append, 0)
    assert seen == [0, 1, 2, 3, 4]


def test_the_first_batch_that_fails_names_the_error_and_ends_the_rest() -> None:
    together = threading.Barrier(2)
    seen: list[int] = []

    def work(start: int) -> None:
        seen.append(start)
        together.wait(timeout=30)
        raise ValueError(f"batch {start}")

    with pytest.raises(ValueError, match="batch 0"):
        for_each_batch(range(100), work, 2)
    assert sorted(seen) == [0, 1]


@pytest.mark.parametrize("threads", [1, 3])
def test_what_a_failed_call_worked_on_is_freed_at_once(threads: int) -> None:
    class Vectors:
        """Stands for an array."""

    def call() -> weakref.ref[Vectors]:
        out = Vectors()
        known = weakref.ref(out)

        def work(start: int) -> None:
            raise ValueError(f"{start} {out}")

        with contextlib.suppress(ValueError):
            for_each_batch(range(4), work, threads)
        return known

    gc.disable()
    try:
        assert call()() is None
    finally:
        gc.enable()
