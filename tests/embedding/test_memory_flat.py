"""The resident set does not grow over batches of changing shape (promise 8 of the design)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# In a process of its own: other tests' garbage would come and go in the same figure.
PROGRAM = """
import sys
import numpy as np, psutil
from ai_model_optimizations import EmbeddingModel

model = EmbeddingModel.load(sys.argv[1], dtype=sys.argv[2])
random = np.random.default_rng(3)
words = [f"word{i}" for i in range(40)] + ["yes", "hi", "card", "question"]
def batch():
    lengths = random.integers(1, 50, random.integers(1, 33))
    return [" ".join(random.choice(words, length)) for length in lengths]
largest = [" ".join(["word"] * 60)] * 32
for _ in range(20):
    model.encode(largest)
process = psutil.Process()
for _ in range(50):
    model.encode(batch())
before = process.memory_info().rss
for _ in range(int(sys.argv[3])):
    model.encode(batch(), batch_size=int(random.integers(1, 40)))
print(process.memory_info().rss - before)
"""


def growth(model: Path, dtype: str, batches: int) -> int:
    command = [sys.executable, "-c", PROGRAM, str(model), dtype, str(batches)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.parametrize("dtype", ["f16", "int8"])
def test_memory_stays_flat_over_batches_of_random_shape(small_path: Path, dtype: str) -> None:
    assert growth(small_path, dtype, 400) < 5e6


@pytest.mark.soak
@pytest.mark.parametrize("dtype", ["f16", "bf16", "int8"])
def test_memory_stays_flat_over_ten_thousand_batches(small_path: Path, dtype: str) -> None:
    assert growth(small_path, dtype, 10_000) < 5e6
