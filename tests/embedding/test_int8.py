"""int8 weights: close to f32 on real text, the same for every batch, and safe to map."""

from pathlib import Path

import numpy as np
import pytest
from model_folders import BertFolder

from ai_model_optimizations import EmbeddingModel, ModelFormatError
from ai_model_optimizations.embedding.outliers import find_outliers
from ai_model_optimizations.embedding.weights import new_encoder

TEXTS = [
    "!!!", "yes", "hi", "card", "How do I reset my password?", "Şifremi nasıl değiştirebilirim?",
    "Return the sum of a 'start' value (default: 0) plus an iterable of numbers.",
    "The card was declined at the shop, although there was money in the account. " * 4,
    "1234 5678 90", "What is the exchange rate today, and when will it change?",
    "ValueError: invalid literal for int() with base 10: 'x'",
]  # fmt: skip


def test_real_text_keeps_its_meaning_in_a_quarter_of_the_bytes(minilm_path: Path) -> None:
    full = EmbeddingModel.load(minilm_path, dtype="f32")
    small = EmbeddingModel.load(minilm_path, dtype="int8")
    cosines = (full.encode(TEXTS) * small.encode(TEXTS)).sum(axis=1)
    assert cosines.min() >= 0.995
    assert cosines.mean() >= 0.999
    assert small.memory_bytes <= 0.27 * full.memory_bytes


@pytest.mark.parametrize(
    "shape",
    [
        BertFolder(),
        BertFolder(hidden=12, heads=1, intermediate=7, layers=1),
        BertFolder(hidden=64, heads=4, intermediate=256, pooling="cls_token"),
    ],
)
def test_any_shape_is_close_and_independent_of_the_batch(tmp_path: Path, shape: BertFolder) -> None:
    folder = shape.write(tmp_path / "model")
    full = EmbeddingModel.load(folder, dtype="f32")
    small = EmbeddingModel.load(folder, dtype="int8")
    vectors = small.encode(TEXTS)
    assert (full.encode(TEXTS) * vectors).sum(axis=1).min() > 0.99
    assert np.array_equal(np.stack([small.encode(text) for text in TEXTS]), vectors)
    assert np.array_equal(small.encode(TEXTS[::-1], batch_size=2), vectors[::-1])
    assert small.space_id == full.space_id


def test_it_makes_no_difference_what_it_was_made_from(small_path: Path) -> None:
    loaded = EmbeddingModel.load(small_path, dtype="int8")
    made = EmbeddingModel.load(small_path, dtype="f32").astype("int8")
    assert np.array_equal(made.encode(TEXTS), loaded.encode(TEXTS))
    halved = EmbeddingModel.load(small_path, dtype="f16").astype("int8")
    assert (halved.encode(TEXTS) * loaded.encode(TEXTS)).sum(axis=1).min() > 0.999
    with pytest.raises(ValueError, match="bf16 already"):
        EmbeddingModel.load(small_path, dtype="bf16").astype("int8")


def test_saved_model_is_the_same_model_and_damage_is_refused(
    small_path: Path, tmp_path: Path
) -> None:
    model = EmbeddingModel.load(small_path, dtype="int8")
    file = model.save(tmp_path / "saved")
    assert np.array_equal(EmbeddingModel.load(file).encode(TEXTS), model.encode(TEXTS))

    weights = {name: (layers, bytes_) for name, layers, *_, bytes_ in model._encoder.weights()}
    block = np.zeros(weights["up"][1] + 64, dtype=np.uint8)
    block = block[-block.ctypes.data % 64 :][: weights["up"][1]]
    block[:] = model._encoder.weight("up", 0)
    block[:4] = 0xFF  # the first outlier channel
    fresh = new_encoder(model._folder, "int8")
    with pytest.raises(ModelFormatError, match="outlier channel"):
        fresh.map_weight("up", 0, block)


def test_outliers_are_those_channels_that_stand_out(tmp_path: Path) -> None:
    class Loud(BertFolder):
        def weights(self) -> dict[str, np.ndarray]:
            weights = super().weights()
            weights["embeddings.LayerNorm.weight"][[5, 40]] = 30.0
            return weights

    folder = Loud(hidden=64, heads=4).write(tmp_path / "model")
    model = EmbeddingModel.load(folder, dtype="f32")
    frame = model._tokenizer.pack([""]).token_ids
    outliers = find_outliers(model._encoder, 17, frame)
    assert [len(matrices) for matrices in outliers] == [4, 4]
    assert {5, 40} <= set(outliers[0][0].tolist())
    again = find_outliers(model._encoder, 17, frame)
    np.testing.assert_equal(again, outliers)


def test_outliers_that_do_not_exist_are_refused(small_path: Path) -> None:
    model = EmbeddingModel.load(small_path, dtype="f32")
    encoder = new_encoder(model._folder, "int8")
    with pytest.raises(ValueError, match="outlier channels below 36"):
        encoder.set_outliers("up.weight", 0, np.array([36], np.int32))
    with pytest.raises(ValueError, match="outlier channels"):
        encoder.set_outliers("up.weight", 0, np.arange(17, dtype=np.int32))
    with pytest.raises(ValueError, match="no int8 matrix"):
        encoder.set_outliers("up.bias", 0, np.array([1], np.int32))
    with pytest.raises(ValueError, match="no int8 matrix"):
        model._encoder.set_outliers("up.weight", 0, np.array([1], np.int32))
