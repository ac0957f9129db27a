"""Models that the tests of this folder share."""

import sys
from pathlib import Path

import pytest

from ai_model_optimizations import EmbeddingModel

sys.path.insert(0, str(Path(__file__).parent.parent / "embedding"))

from model_folders import BertFolder


@pytest.fixture(scope="session")
def small_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random BERT."""
    return BertFolder().write(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="session")
def small_full(small_path: Path) -> EmbeddingModel:
    """The small random BERT in f32."""
    return EmbeddingModel.load(small_path, dtype="f32")
