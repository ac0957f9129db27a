"""Eight bits in torch models: which inputs stay in 16, and what a row's result depends on."""

from __future__ import annotations

import copy
import importlib
import io
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ai_model_optimizations import EmbeddingModel, ModelQuantizer, UnsupportedError

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")

sys.path.insert(0, str(Path(__file__).parent))
fixtures: Any = importlib.import_module("torch_fixtures")
modules: Any = importlib.import_module("ai_model_optimizations.quantization.torch_modules")
Small, gpt2 = fixtures.Small, fixtures.gpt2

IDS = torch.arange(12).reshape(2, 6)
TEXTS = ["How do I reset my password?", "", "Die Größe der Datei", "one two three " * 30]
LOUD = [5, 17, 60]  # channels of inputs that are much larger than the others


def loud_inputs(rows: int) -> Any:
    x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(3))
    x[:, LOUD] *= 60
    return x


def error_of(layer: Any, plain: Any, x: Any) -> float:
    expected = plain(x)
    return float((layer(x) - expected).norm() / expected.norm())


@pytest.mark.parametrize("form", ["tensor", "tuple", "dict", "function"])
def test_a_sample_finds_the_inputs_that_stay_in_16_bits(form: str) -> None:
    plain, x = torch.nn.Linear(64, 40), loud_inputs(20)
    plain.weight.data[:, LOUD] *= 0.01
    samples = {"tensor": x, "tuple": (x,), "dict": {"input": x}, "function": lambda m: m(x)}
    quantizer = ModelQuantizer("int8")
    blind = quantizer.quantize_model(plain)
    assert "sample= finds better ones" in str(quantizer.report)
    model = quantizer.quantize_model(plain, sample=samples[form])
    assert "sample=" not in str(quantizer.report)
    assert error_of(model, plain, x) < 0.3 * error_of(blind, plain, x) < 0.1
    assert not plain._forward_pre_hooks and plain.training


def test_a_row_depends_on_nothing_but_itself() -> None:
    model = ModelQuantizer("int8").quantize_model(torch.nn.Linear(64, 40))
    x = loud_inputs(13)
    together = model(x)
    for i in range(len(x)):
        assert torch.equal(model(x[i : i + 1])[0], together[i])


def test_a_sample_that_the_model_does_not_take_is_an_error_and_changes_nothing() -> None:
    plain = Small()
    with pytest.raises(RuntimeError):
        ModelQuantizer("int8").quantize_model(plain, sample=torch.randn(3), in_place=True)
    assert type(plain.up) is torch.nn.Linear and not plain.up._forward_pre_hooks


def test_gpt2_in_eight_bits() -> None:
    plain, quantizer = gpt2(n_embd=64), ModelQuantizer("int8")
    sizes = quantizer.quantize_model(plain, dry_run=True)
    model = quantizer.quantize_model(plain)
    report = quantizer.report
    assert report is not None and not report.notes
    assert sizes.bytes_after == report.bytes_after
    held = {t.untyped_storage().data_ptr(): t for t in (*model.parameters(), *model.buffers())}
    assert report.bytes_after == sum(t.numel() * t.element_size() for t in held.values())
    expected, got = plain(IDS).logits, model(IDS).logits
    assert float(torch.nn.functional.cosine_similarity(got, expected, dim=-1).min()) > 0.999
    figures = {t.name: t for t in report.of_action("quantized")}
    back = ModelQuantizer.dequantize(model)
    for name in ("transformer.wte.weight", "transformer.wpe.weight"):
        before, after = (dict(m.named_parameters())[name].detach() for m in (plain, back))
        assert figures[name].max_error == pytest.approx(float((after - before).abs().max()))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.share_memory()):
        assert torch.equal(other(IDS).logits, got)
        assert other.lm_head.packed.data_ptr() == other.transformer.wte.packed.data_ptr()
    ids = model.generate(IDS, max_new_tokens=5, do_sample=False, attention_mask=IDS * 0 + 1)
    assert ids.shape == (2, 11)


def test_tables_keep_a_scale_for_each_row() -> None:
    plain = torch.nn.Embedding(20, 33, padding_idx=0)
    plain.weight.data[3] *= 1e4
    plain.weight.data[4] = 0
    model = ModelQuantizer("int8").quantize_model(plain)
    assert isinstance(model, modules.TableEmbedding) and model.table.dtype == torch.int8
    rows = torch.arange(20).reshape(4, 5)
    for index in (rows, rows.int()):
        got, expected = model(index), plain(index)
        step = expected.abs().amax(dim=-1, keepdim=True) / 127
        assert bool(((got - expected).abs() <= 0.501 * step).all())
    assert torch.equal(model.weight.clone(), model(torch.arange(20)))
    assert model.half()(rows).dtype == torch.float16 and model.table.dtype == torch.int8


def test_what_eight_bits_cannot_hold_is_wider() -> None:
    wide = torch.nn.Sequential(torch.nn.Linear(8200, 3), torch.nn.Linear(3, 40))
    wide[1].weight.data[2, 1] = float("nan")
    quantizer = ModelQuantizer("int8")
    model = quantizer.quantize_model(wide)
    assert model[0].packed_dtype == "f16" and type(model[1]) is torch.nn.Linear
    assert quantizer.report is not None
    (kept,) = [t for t in quantizer.report.of_action("kept") if len(t.shape) == 2]
    assert kept.reason == "1 values are NaN or infinite"
    mixed = torch.nn.Sequential(torch.nn.Linear(8200, 3), torch.nn.Linear(3, 40))
    model = quantizer.quantize_model(mixed)
    assert [m.packed_dtype for m in model] == ["f16", "int8"]
    assert quantizer.quantize_model(model) is model
    with pytest.raises(ValueError, match="quantized already, to f16, int8"):
        ModelQuantizer("bf16").quantize_model(model)


def test_a_damaged_state_dict_is_refused_before_it_is_used() -> None:
    model = ModelQuantizer("int8").quantize_model(torch.nn.Linear(64, 40))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    state = torch.load(file)
    model(torch.zeros(1, 64))
    model.load_state_dict(state)
    state["packed"].numpy().view(np.int32)[0] = 1000
    model.load_state_dict(state)
    with pytest.raises(ValueError, match="an outlier channel that is not below k"):
        model(torch.zeros(1, 64))


@pytest.mark.parametrize("channels", [[64], [-1], list(range(17))])
def test_channels_that_a_matrix_lacks_are_refused(channels: list[int]) -> None:
    _, matrix = modules.pack_rows("int8", 40, 64)
    with pytest.raises(ValueError, match="channels: expected at most 16, each below 64"):
        matrix.set_outliers(np.array(channels, np.int32))
    _, halves = modules.pack_rows("f16", 40, 64)
    with pytest.raises(ValueError, match="expected writable int8 panels"):
        halves.set_outliers(np.array([1], np.int32))


def test_what_takes_no_texts_is_never_smallest_in_eight_bits() -> None:
    assert ModelQuantizer("smallest").quantize_model(Small()).up.packed_dtype == "f16"


@pytest.fixture(scope="module")
def plain(minilm_path: Path) -> Any:
    library = pytest.importorskip("sentence_transformers", reason="it is not installed")
    return library.SentenceTransformer(str(minilm_path), device="cpu")


def cosines(a: Any, b: Any) -> Any:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_sentence_transformer(plain: Any, minilm_path: Path, real_texts: Any) -> None:
    quantizer = ModelQuantizer("int8")
    sizes = quantizer.quantize_model(plain, dry_run=True)
    model = quantizer.quantize_model(plain)
    assert isinstance(model, type(plain)) and model.embedding_model.dtype == "int8"
    texts = [text[:300] for text in real_texts[::30]]
    found = cosines(model.encode(texts), plain.encode(texts))
    assert found.mean() >= 0.999 and found.min() >= 0.99
    same = EmbeddingModel.load(minilm_path, dtype="int8")
    np.testing.assert_array_equal(model.encode(TEXTS), same.encode(TEXTS))
    report = quantizer.report
    assert report is not None and report.saved >= 0.73
    assert report.bytes_after == sizes.bytes_after == model.embedding_model.memory_bytes
    assert all(t.sqnr_db > 20 for t in report.of_action("quantized") if t.sqnr_db is not None)
    back = ModelQuantizer.dequantize(model)
    assert cosines(back.encode(TEXTS), model.encode(TEXTS)).min() > 0.99


def test_smallest_and_in_place(plain: Any) -> None:
    quantizer = ModelQuantizer("smallest", min_cosine=0.99999)
    model = copy.deepcopy(plain)
    assert quantizer.quantize_model(model, in_place=True) is model
    assert model.embedding_model.dtype == "f16" and "int8 was left aside" in str(quantizer.report)
    model = copy.deepcopy(plain)
    assert ModelQuantizer("int8").quantize_model(model, in_place=True) is model
    assert all(parameter.numel() == 0 for parameter in model[0].parameters())


def test_layers_of_other_families_see_texts(plain: Any) -> None:
    model = copy.deepcopy(plain)
    model.append(torch.nn.Identity())
    quantizer = ModelQuantizer("int8", verify_texts=TEXTS[:1])
    small = quantizer.quantize_model(model, in_place=True)
    assert quantizer.report is not None and "sample=" not in str(quantizer.report)
    assert quantizer.report.cosine is not None and quantizer.report.cosine.minimum > 0.995
    assert cosines(small.encode(TEXTS), plain.encode(TEXTS)).min() > 0.99


@pytest.mark.parametrize("in_place", [False, True])
def test_arrays_have_no_place_for_scales(in_place: bool) -> None:
    arrays = {"w": np.ones((4, 4), np.float32)}
    with pytest.raises(UnsupportedError, match="int8 needs scales"):
        ModelQuantizer("int8").quantize_model(arrays, in_place=in_place)
    assert arrays["w"].dtype == np.float32
