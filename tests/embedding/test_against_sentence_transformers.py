"""The same vectors as sentence-transformers in fp32: the real model, and random BERTs."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ai_model_optimizations import EmbeddingModel, _core

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")

#: Minimum cosine with fp32 over all texts.
LEAST_COSINE = {"f32": 0.999999, "f16": 0.99999, "bf16": 0.9999}


def least_cosine(a: np.ndarray, b: np.ndarray) -> float:
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.min((a * b).sum(axis=1) / norms))


@pytest.fixture(scope="module")
def texts(real_texts: tuple[str, ...]) -> list[str]:
    """Over 1,000 real texts of 1 to 256 tokens on the machine's own row, most of them short.

    The slow reference row takes a sample.
    """
    mixed = [t if i % 4 == 0 else " ".join(t.split()[:25]) for i, t in enumerate(real_texts)]
    unique = list(dict.fromkeys(mixed))
    return unique[::40] if _core.cpu_info()["row"] == "scalar" else unique


@pytest.fixture(scope="module")
def reference(
    minilm_path: Path, texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> np.ndarray:
    """The texts' vectors; runs of the suite for several rows share them by AIMO_TEST_CACHE."""
    import sentence_transformers

    key = hashlib.sha256("\0".join([sentence_transformers.__version__, *texts]).encode())
    folder = Path(os.environ.get("AIMO_TEST_CACHE") or tmp_path_factory.mktemp("reference"))
    file = folder / f"{key.hexdigest()}.npy"
    if not file.exists():
        model = sentence_transformers.SentenceTransformer(str(minilm_path), device="cpu")
        folder.mkdir(parents=True, exist_ok=True)
        np.save(file, np.asarray(model.encode(texts)))
    return np.load(file)


@pytest.mark.parametrize("dtype", LEAST_COSINE)
def test_real_model_matches(
    minilm_path: Path, texts: list[str], reference: np.ndarray, dtype: str
) -> None:
    model = EmbeddingModel.load(minilm_path, dtype=dtype)
    every = 1 if dtype == "f16" else 5
    vectors = model.encode(texts[::every], batch_size=256)
    assert least_cosine(vectors, reference[::every]) >= LEAST_COSINE[dtype]


def test_texts_cover_the_lengths(minilm: EmbeddingModel, texts: list[str]) -> None:
    counts = minilm.count_tokens(texts)
    assert counts.min() <= 4 and counts.max() == 256
    assert len(texts) >= 1000 or _core.cpu_info()["row"] == "scalar"


def make_bert(path: Path, vocabulary: Path, **sizes: Any) -> Any:
    """A BERT with random weights, written by transformers and sentence-transformers."""
    import torch
    from sentence_transformers import SentenceTransformer, models
    from transformers import AutoTokenizer, BertConfig, BertModel

    normalize, pooling = sizes.pop("normalize"), sizes.pop("pooling")
    torch.manual_seed(0)
    bert = BertModel(BertConfig(vocab_size=30522, max_position_embeddings=128, **sizes))
    with torch.no_grad():
        for parameter in bert.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    bert.eval().save_pretrained(str(path / "bert"))
    AutoTokenizer.from_pretrained(str(vocabulary)).save_pretrained(str(path / "bert"))
    transformer = models.Transformer(str(path / "bert"), max_seq_length=100)
    modules = [transformer, models.Pooling(sizes["hidden_size"], pooling_mode=pooling)]
    if normalize:
        modules.append(models.Normalize())
    model = SentenceTransformer(modules=modules, device="cpu")
    model.save(str(path / "model"))
    return model


@pytest.mark.parametrize(
    ("hidden", "heads", "intermediate", "pooling", "normalize", "activation"),
    [
        (32, 1, 64, "mean", True, "gelu"),
        (60, 5, 100, "cls", False, "relu"),
        (96, 3, 200, "max", True, "gelu_new"),
        (252, 7, 500, "mean", False, "silu"),
        (768, 12, 1024, "cls", True, "gelu"),
        (1024, 16, 512, "mean", True, "gelu"),
    ],
)
def test_random_berts_match(
    tmp_path: Path,
    minilm_path: Path,
    real_texts: tuple[str, ...],
    hidden: int,
    heads: int,
    intermediate: int,
    pooling: str,
    normalize: bool,
    activation: str,
) -> None:
    theirs = make_bert(
        tmp_path,
        minilm_path,
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        num_hidden_layers=2,
        hidden_act=activation,
        pooling=pooling,
        normalize=normalize,
    )
    texts = list(real_texts[:: len(real_texts) // 12])
    expected = np.asarray(theirs.encode(texts))
    for dtype, least in LEAST_COSINE.items():
        ours = EmbeddingModel.load(tmp_path / "model", dtype=dtype)
        assert ours.max_seq_length == 100 and ours.normalizes == normalize
        assert least_cosine(ours.encode(texts), expected) >= least
