"""Where a batch's time goes, as the core tells it."""

from __future__ import annotations

import time

import numpy as np
import pytest

from ai_model_optimizations import EmbeddingModel


def test_times_of_all_operations_fit_into_the_call(small_model: EmbeddingModel) -> None:
    encoder = small_model._encoder
    ids = np.zeros(60, np.int32)
    offsets = np.array([0, 20, 25, 60], np.int64)
    start = time.perf_counter()
    seconds = encoder.operation_seconds(ids, offsets)
    whole = time.perf_counter() - start
    assert list(seconds) == [
        "embed", "qkv", "attention", "attention_output", "up", "down", "pool",
    ]  # fmt: skip
    assert min(seconds.values()) > 0
    assert sum(seconds.values()) <= whole


def test_it_refuses_what_encode_refuses(small_model: EmbeddingModel) -> None:
    encoder = small_model._encoder
    with pytest.raises(ValueError, match="offsets"):
        encoder.operation_seconds(np.zeros(3, np.int32), np.array([0, 2], np.int64))
    with pytest.raises(ValueError, match="token_ids"):
        encoder.operation_seconds(np.array([-1], np.int32), np.array([0, 1], np.int64))
