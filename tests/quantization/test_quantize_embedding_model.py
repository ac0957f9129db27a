"""Quantizing an EmbeddingModel: what the report says is what the model is."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_folders import BertFolder
from safetensors.numpy import load_file, save_file

from ai_model_optimizations import (
    EmbeddingModel,
    ModelFormatError,
    ModelQuantizer,
    PrecisionError,
    UnsupportedError,
)
from ai_model_optimizations.quantization import embedding_model

TEXTS = ["read the file", "a list of values", "time " * 30]


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_report_adds_up_to_the_models_bytes(small_full: EmbeddingModel, dtype: str) -> None:
    quantizer = ModelQuantizer(dtype)
    small = quantizer.quantize_model(small_full)
    report = quantizer.report
    assert report is not None and report.dtype == small.dtype == dtype
    assert report.bytes_before == small_full.memory_bytes
    assert report.bytes_after == small.memory_bytes
    names = {tensor.name: tensor for tensor in report.tensors}
    word = names["word_embeddings"]
    values = small_full._encoder.tensor("word_embeddings", 0)
    after = small._encoder.tensor("word_embeddings", 0)
    assert word.max_error == np.abs(values.astype(np.float64) - after).max()
    assert word.sqnr_db is not None and word.sqnr_db > (70 if dtype == "f16" else 50)
    assert names["layers.1.up.bias"].reason == "a norm or a bias"
    dry = ModelQuantizer(dtype).quantize_model(small_full, dry_run=True)
    assert (dry.bytes_before, dry.bytes_after) == (report.bytes_before, report.bytes_after)
    assert dry.rss_before is None


def test_a_quantized_model_comes_back_unchanged(small_full: EmbeddingModel) -> None:
    quantizer = ModelQuantizer("f16")
    small = quantizer.quantize_model(small_full)
    assert quantizer.quantize_model(small) is small
    assert quantizer.report is not None and quantizer.report.saved == 0.0
    assert quantizer.report.tensors[0].reason == "stored as f16 already"
    with pytest.raises(ValueError, match="the weights are f16 already"):
        ModelQuantizer("bf16").quantize_model(small)


def test_cosine_is_measured_on_the_texts_that_are_given(small_full: EmbeddingModel) -> None:
    quantizer = ModelQuantizer("f16", verify_texts=TEXTS)
    small = quantizer.quantize_model(small_full)
    assert quantizer.report is not None
    cosine = quantizer.report.cosine
    a, b = small_full.encode(TEXTS).astype(float), small.encode(TEXTS).astype(float)
    expected = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine is not None and cosine.texts == 3
    assert cosine.minimum == pytest.approx(expected.min(), abs=1e-12)
    assert cosine.mean == pytest.approx(expected.mean(), abs=1e-12)
    assert "cosine with the given model over 3 texts" in str(quantizer.report)


def test_too_small_a_cosine_is_an_error(small_full: EmbeddingModel) -> None:
    with pytest.raises(PrecisionError, match=r"bf16: a text's .* min_cosine asks for 1\.0"):
        ModelQuantizer("bf16", min_cosine=1.0).quantize_model(small_full)


def test_smallest_is_the_one_with_the_fewest_bytes_that_keeps_the_cosine(
    small_full: EmbeddingModel, tmp_path: Path
) -> None:
    quantizer = ModelQuantizer("smallest")
    assert quantizer.quantize_model(small_full).dtype == "int8"
    assert quantizer.report is not None and quantizer.report.cosine is not None
    assert quantizer.report.cosine.minimum >= 0.999
    exact = ModelQuantizer("smallest", min_cosine=0.99999)
    halves = exact.quantize_model(small_full)
    assert halves.dtype == "f16" and "int8 was left aside: " in str(exact.report)
    assert exact.quantize_model(halves).dtype == "f16"
    assert quantizer.quantize_model(halves).dtype == "int8"
    large = EmbeddingModel.load(with_large_values(tmp_path), dtype="f32")
    fitting = ModelQuantizer("bf16", min_cosine=0.999)
    fitting.quantize_model(large)
    assert fitting.report is not None and fitting.report.cosine is not None
    close = ModelQuantizer("smallest", min_cosine=fitting.report.cosine.minimum)
    assert close.quantize_model(large).dtype == "bf16"
    assert "f16 was left aside: " in str(close.report)


def test_int8_is_reported_as_it_is_stored(small_full: EmbeddingModel, small_path: Path) -> None:
    quantizer = ModelQuantizer("int8")
    eight = quantizer.quantize_model(small_full)
    report = quantizer.report
    assert report is not None and report.bytes_after == eight.memory_bytes
    assert all(
        30 < tensor.sqnr_db < 70
        for tensor in report.of_action("quantized")
        if tensor.sqnr_db is not None
    )
    sizes = quantizer.quantize_model(small_path, dry_run=True)
    same = quantizer.quantize_model(small_path)
    np.testing.assert_array_equal(same.encode(TEXTS), eight.encode(TEXTS))
    assert quantizer.report is not None
    assert quantizer.report.bytes_after == sizes.bytes_after == same.memory_bytes
    with pytest.raises(ValueError, match="the weights are int8 already"):
        ModelQuantizer("f16").quantize_model(eight)


def with_large_values(path: Path) -> Path:
    folder = BertFolder().write(path / "large")
    weights = load_file(str(folder / "model.safetensors"))
    weights["embeddings.word_embeddings.weight"][0, 0] = 1e6
    save_file(weights, str(folder / "model.safetensors"))
    return folder


def test_values_beyond_f16_are_an_error_or_another_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = EmbeddingModel.load(with_large_values(tmp_path), dtype="f32")
    with pytest.raises(ModelFormatError, match=r"word_embeddings .* does not fit f16"):
        ModelQuantizer("f16").quantize_model(full)
    monkeypatch.setattr(
        "ai_model_optimizations.quantization.model_quantizer.resolve_dtype", lambda _: "f16"
    )
    automatic = ModelQuantizer("auto")
    for model in (full, full.path):
        small: Any = automatic.quantize_model(model)
        assert small.dtype == "bf16" and "does not fit f16" in str(automatic.report)


def test_an_int8_matrix_takes_no_value_that_an_f16_channel_of_it_cannot_hold(
    tmp_path: Path,
) -> None:
    folder = BertFolder().write(tmp_path / "large")
    weights = load_file(str(folder / "model.safetensors"))
    name = "encoder.layer.0.intermediate.dense.weight"
    weights[name][0] = 1e6
    save_file(weights, str(folder / "model.safetensors"))
    full = EmbeddingModel.load(folder, dtype="f32")
    with pytest.raises(ModelFormatError, match=r"up\.weight of layer 0: .* does not fit f16"):
        ModelQuantizer("int8").quantize_model(full)


def test_skip_is_refused(small_full: EmbeddingModel) -> None:
    with pytest.raises(UnsupportedError, match="skip: an EmbeddingModel stores all matrices in"):
        ModelQuantizer(skip="word_embeddings").quantize_model(small_full)


def test_saved_and_loaded_again(small_full: EmbeddingModel, tmp_path: Path) -> None:
    quantizer = ModelQuantizer("f16")
    small = quantizer.quantize_model(small_full)
    file = quantizer.save_quantized(small, tmp_path / "saved")
    np.testing.assert_array_equal(EmbeddingModel.load(file).encode(TEXTS), small.encode(TEXTS))
    assert quantizer.quantize_model(tmp_path / "saved").dtype == "f16"
    shutil.copy(file, tmp_path / "another-name.safetensors")
    assert quantizer.quantize_model(tmp_path / "another-name.safetensors").dtype == "f16"


def test_a_failure_leaves_the_model_as_it_was(
    small_full: EmbeddingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = small_full.encode(TEXTS)

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(embedding_model, "measure", fail)
    with pytest.raises(MemoryError):
        ModelQuantizer("f16").quantize_model(small_full)
    np.testing.assert_array_equal(small_full.encode(TEXTS), before)
