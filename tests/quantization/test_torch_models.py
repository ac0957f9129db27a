"""torch models: packed layers compute what plain ones do, and stay good citizens of torch."""

from __future__ import annotations

import copy
import gc
import importlib
import io
import pickle
import re
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ai_model_optimizations import ModelQuantizer, UnsupportedError, _core

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")

sys.path.insert(0, str(Path(__file__).parent))
fixtures: Any = importlib.import_module("torch_fixtures")
modules: Any = importlib.import_module("ai_model_optimizations.quantization.torch_modules")
Small, gpt2 = fixtures.Small, fixtures.gpt2

IDS = torch.arange(12).reshape(2, 6)
#: Relative to the largest output: half a unit in the last place, over a few layers.
TOLERANCE = {"f16": 2e-3, "bf16": 2e-2}


def quantized(model: Any, dtype: str = "f16", **options: Any) -> Any:
    return ModelQuantizer(dtype).quantize_model(model, **options)


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, dtype: str) -> None:
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    assert error <= TOLERANCE[dtype], error


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (16, 3), (17, 64), (70, 385)])
def test_layer_is_the_product_with_the_rounded_weight(dtype: str, n: int, k: int) -> None:
    layer = torch.nn.Linear(k, n)
    ours = quantized(layer, dtype)
    stored = layer.weight.detach().to(torch.float16 if dtype == "f16" else torch.bfloat16).float()
    assert torch.equal(ours.weight.clone(), stored)
    for shape in [(k,), (0, k), (3, k), (2, 5, k), (1, 1, 1, k)]:
        x = torch.randn(shape)
        expected = torch.nn.functional.linear(x.double(), stored.double(), layer.bias.double())
        got = ours(x)
        assert got.shape == expected.shape and got.dtype == torch.float32
        # Processors that multiply bf16 round the inputs to it as well.
        rounding = 1e-6 if dtype == "f16" else 2.0**-8
        most = torch.nn.functional.linear(x.double().abs(), stored.double().abs())
        assert bool(((got.double() - expected).abs() <= rounding * most + 1e-6).all())
    strided = torch.randn(k, 4).t()
    torch.testing.assert_close(ours(strided), ours(strided.contiguous()), rtol=0, atol=0)


def test_layer_refuses_other_widths() -> None:
    with pytest.raises(ValueError, match=r"input: expected \(\.\.\., 8\), got \(2, 4\)"):
        quantized(torch.nn.Linear(8, 3))(torch.zeros(2, 4))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_layer_refuses_what_is_no_float_as_torch_does(dtype: Any) -> None:
    plain = torch.nn.Linear(8, 3)
    with pytest.raises(RuntimeError):
        plain(torch.ones(2, 8, dtype=dtype))
    with pytest.raises(TypeError, match=f"input: expected a floating dtype, got {dtype}"):
        quantized(plain)(torch.ones(2, 8, dtype=dtype))


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("in_place", [False, True])
def test_gpt2_generates_with_the_same_logits(dtype: str, in_place: bool) -> None:
    plain = gpt2()
    model = quantized(copy.deepcopy(plain), dtype, in_place=in_place)
    assert isinstance(model.transformer.wte, modules.PackedEmbedding)
    assert isinstance(model.transformer.wpe, modules.TableEmbedding)
    assert isinstance(model.transformer.h[0].attn.c_attn, modules.PackedConv1D)
    assert type(model.lm_head) is modules.PackedLinear
    options: Any = {
        "max_new_tokens": 5, "do_sample": False, "output_logits": True,
        "return_dict_in_generate": True, "attention_mask": torch.ones_like(IDS),
    }  # fmt: skip
    theirs, ours = plain.generate(IDS, **options), model.generate(IDS, **options)
    assert_close(ours.logits[0], theirs.logits[0], dtype)
    forced = ours.sequences
    with torch.no_grad():
        assert_close(model(forced).logits, plain(forced).logits, dtype)


def test_tied_weights_stay_one_and_are_counted_once() -> None:
    quantizer = ModelQuantizer("f16")
    plain = gpt2()
    model = quantizer.quantize_model(plain)
    for one in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        memory = one.lm_head.packed.untyped_storage().data_ptr()
        assert memory == one.transformer.wte.packed.untyped_storage().data_ptr()
        assert torch.equal(one(IDS).logits, model(IDS).logits)
    assert quantizer.report is not None
    tied = [t for t in quantizer.report.tensors if "wte" in t.name or "lm_head" in t.name]
    assert [t.name for t in tied] == ["transformer.wte.weight"]
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    buffers = {b.untyped_storage().data_ptr(): b for b in model.buffers()}
    held += sum(b.numel() * b.element_size() for b in buffers.values())
    assert quantizer.report.bytes_after == held
    again = ModelQuantizer.dequantize(model)
    assert again.lm_head.weight is again.transformer.wte.weight
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits)
    assert type(again.transformer.h[0].mlp.c_fc) is type(plain.transformer.h[0].mlp.c_fc)


def test_given_model_is_untouched_and_the_copy_is_its_own() -> None:
    plain = gpt2()
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    model = quantized(plain)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(3.0)
    assert torch.equal(plain.transformer.ln_f.weight, before["transformer.ln_f.weight"])


def test_in_place_frees_weight_by_weight() -> None:
    model = Small()
    gone = [weakref.ref(model.up.weight), weakref.ref(model.table)]
    assert quantized(model, in_place=True) is model
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


def test_state_dict_goes_through_torch_save() -> None:
    model, other = quantized(Small()), quantized(Small())
    with torch.no_grad():
        other.up.packed.zero_()
        other.norm.weight.zero_()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    assert torch.equal(other(IDS), model(IDS))
    with pytest.raises(RuntimeError, match=r"up\.packed"):
        other.load_state_dict(Small().state_dict())


def test_weights_may_move_to_shared_memory() -> None:
    model = quantized(Small())
    expected = model(IDS)
    assert torch.equal(model.share_memory()(IDS), expected)
    assert model.up.packed.is_shared()


@pytest.mark.parametrize("in_place", [False, True])
def test_hooks_work_and_survive(in_place: bool) -> None:
    plain, calls = Small(), []
    handle = plain.up.register_forward_hook(lambda module, args, out: calls.append(type(module)))
    model = quantized(plain, in_place=in_place)
    model.down.register_forward_pre_hook(lambda module, args: (args[0] * 0,))
    assert not model(IDS).any() and calls == [modules.PackedLinear]
    if in_place:
        handle.remove()
        model(IDS)
        assert calls == [modules.PackedLinear]


def test_modes_and_dtypes_of_torch() -> None:
    model = quantized(Small())
    expected = model(IDS)  # grad mode is on: nothing in the model asks for one
    with torch.inference_mode():
        assert torch.equal(model(IDS), expected)
    for same in (model.eval(), model.to("cpu"), model.cpu(), model.float(), model.half()):
        assert same is model
    assert model(IDS).dtype == torch.float16
    assert_close(model(IDS).float(), expected, "f16")
    assert model.float()(IDS).dtype == torch.float32
    assert model.table.table.dtype == torch.float16  # .float() gives no memory back


def test_code_that_looks_at_the_weight_finds_it() -> None:
    plain = Small()
    model = quantized(plain)
    weight = model.up.weight
    assert (weight.dtype, weight.shape, weight.device.type) == (torch.float32, (70, 36), "cpu")
    got = torch.nn.functional.linear(torch.eye(36), weight)
    torch.testing.assert_close(got, plain.up.weight.t().detach(), rtol=1e-3, atol=1e-4)
    layer = torch.nn.TransformerEncoderLayer(32, 4, 40, batch_first=True).eval()
    x = torch.randn(2, 5, 32)
    with torch.no_grad():
        assert_close(quantized(layer)(x), layer(x), "f16")


def test_training_is_a_clear_error() -> None:
    model = quantized(Small())
    with pytest.raises(UnsupportedError, match="cannot be trained"):
        model.train()(IDS)
    model.eval()
    with pytest.raises(UnsupportedError, match="cannot be trained"):
        model.up(torch.randn(2, 36, requires_grad=True))


@pytest.mark.parametrize("skip", ["up", "up.weight", re.compile(r"u.\.weight")])
def test_what_skip_names_stays(skip: Any) -> None:
    quantizer = ModelQuantizer("f16", skip=[skip])
    model = quantizer.quantize_model(Small())
    assert type(model.up) is torch.nn.Linear and type(model.down) is modules.PackedLinear
    assert quantizer.report is not None
    reasons = {tensor.name: tensor.reason for tensor in quantizer.report.of_action("kept")}
    assert reasons["up.weight"] == "named by skip" and "norm.weight" in reasons


def test_skip_keeps_what_is_tied_to_a_skipped_weight() -> None:
    model = ModelQuantizer("f16", skip=["lm_head"]).quantize_model(gpt2())
    assert type(model.lm_head) is torch.nn.Linear
    assert model.lm_head.weight is model.transformer.wte.weight


def test_skip_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="skip: 'upp' matches none"):
        ModelQuantizer(skip=["upp"]).quantize_model(Small())


def test_dry_run_says_the_sizes_that_come() -> None:
    quantizer, plain = ModelQuantizer("f16"), gpt2()
    sizes = quantizer.quantize_model(plain, dry_run=True)
    assert type(plain.lm_head) is torch.nn.Linear
    quantizer.quantize_model(plain)
    assert quantizer.report is not None
    assert sizes.bytes_after == quantizer.report.bytes_after < sizes.bytes_before
    assert {t.name for t in sizes.tensors} == {t.name for t in quantizer.report.tensors}


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (float("nan"), "f16", "1 values are NaN or infinite"),
        (float("-inf"), "bf16", "1 values are NaN or infinite"),
        (65520.0, "f16", "1 values are too large for f16"),
        (3.4e38, "bf16", "1 values are too large for bf16"),
        (65520.0, "int8", "1 values are too large for int8"),
    ],
)
def test_values_that_do_not_fit_stay_in_f32_and_are_counted(
    value: float, dtype: str, message: str
) -> None:
    plain = Small()
    with torch.no_grad():
        plain.up.weight[3, 4] = value
    quantizer = ModelQuantizer(dtype)
    model = quantizer.quantize_model(plain)
    assert type(model.up) is torch.nn.Linear and type(model.down) is modules.PackedLinear
    assert quantizer.report is not None
    kept = {tensor.name: tensor for tensor in quantizer.report.of_action("kept")}["up.weight"]
    assert kept.reason == message and kept.overflowed == int(np.isfinite(value))


def test_a_module_whose_forward_was_replaced_stays_as_it_is() -> None:
    plain = Small().eval()
    forward = plain.up.forward
    plain.up.forward = lambda x: 3.0 * forward(x)
    quantizer = ModelQuantizer("f16")
    model = quantizer.quantize_model(plain)
    assert type(model.up) is torch.nn.Linear and type(model.down) is modules.PackedLinear
    assert quantizer.report is not None
    assert "up.weight" in {tensor.name for tensor in quantizer.report.of_action("kept")}


def test_tracing_is_refused() -> None:
    packed = quantized(torch.nn.Sequential(torch.nn.Linear(8, 8)))
    with pytest.raises(UnsupportedError, match="cannot be traced"):
        torch.jit.trace(packed, torch.zeros(1, 8))


def test_largest_value_that_rounds_into_range_is_packed() -> None:
    plain = Small()
    with torch.no_grad():
        plain.up.weight[0, 0] = 65519.0
    model = quantized(plain)
    assert float(model.up.weight.clone()[0, 0]) == 65504.0


def test_figures_of_the_report_are_those_of_the_weights() -> None:
    plain, quantizer = Small(), ModelQuantizer("f16")
    with torch.no_grad():
        plain.up.weight[0, :3] = torch.tensor([1e-5, 1e-9, 0.0])
    model = quantizer.quantize_model(plain)
    assert quantizer.report is not None
    found = {tensor.name: tensor for tensor in quantizer.report.tensors}["up.weight"]
    before, after = plain.up.weight.detach().double(), model.up.weight.clone().double()
    error = after - before
    assert found.max_error == pytest.approx(float(error.abs().max()))
    sqnr = 10 * float(torch.log10((before**2).sum() / (error**2).sum()))
    assert found.sqnr_db == pytest.approx(sqnr, rel=1e-4)
    assert found.flushed == 1 and found.subnormal >= 1


def test_meta_device_is_refused() -> None:
    with torch.device("meta"):
        plain = Small()
    with pytest.raises(ValueError, match=r"'table\.weight' is on the meta device"):
        quantized(plain)


def test_quantized_already() -> None:
    model = quantized(Small())
    assert quantized(model) is model
    with pytest.raises(ValueError, match="quantized already, to f16"):
        quantized(model, "bf16")


def test_in_place_refuses_what_another_model_shares() -> None:
    plain, other = Small(), Small()
    other.down.weight = plain.down.weight
    with pytest.raises(ValueError, match=r"storage of 'down\.weight' is shared with another model"):
        quantized(plain, in_place=True)
    assert type(plain.down) is torch.nn.Linear
    other.down = plain.down
    with pytest.raises(ValueError, match=r"module 'down' \(Linear\) is shared with another model"):
        quantized(plain, in_place=True)
    assert type(quantized(plain).down) is modules.PackedLinear
    assert type(other.down) is torch.nn.Linear
    # A container of the whole model is not another model.
    del other
    gc.collect()
    whole = torch.nn.Sequential(plain)
    quantized(plain, in_place=True)
    assert type(whole[0].down) is modules.PackedLinear


@pytest.mark.parametrize("model", [torch.nn.ReLU(), torch.nn.Conv2d(1, 1, 3)])
def test_nothing_to_pack_is_an_error(model: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"has no torch\.nn\.Linear"):
        quantized(model)


def test_nothing_to_dequantize_is_an_error() -> None:
    with pytest.raises(UnsupportedError, match="nothing in this Small is quantized"):
        ModelQuantizer.dequantize(Small())
    with pytest.raises(UnsupportedError, match="expected a quantized torch model, got int"):
        ModelQuantizer.dequantize(3)


def test_texts_cannot_be_compared_by_a_module() -> None:
    with pytest.raises(ValueError, match="min_cosine, verify_texts: a Small takes no texts"):
        ModelQuantizer(min_cosine=0.9).quantize_model(Small())


def test_moving_away_from_the_cpu_is_a_clear_error() -> None:
    with pytest.raises(UnsupportedError, match="cannot be moved to meta"):
        quantized(torch.nn.Linear(3, 4)).to("meta")


def test_index_buffers_shrink() -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=40, max_position_embeddings=30,
    )  # fmt: skip
    plain = BertModel(config).eval()
    model = quantized(plain)
    assert model.embeddings.position_ids.dtype == torch.int32
    with torch.no_grad():
        assert_close(model(IDS).last_hidden_state, plain(IDS).last_hidden_state, "f16")


@pytest.mark.parametrize("dtype", ["f16", "int8"])
def test_what_transformers_could_not_load_again_is_not_saved(dtype: str, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 20, "vocab_size": 30}
    plain = BertModel(BertConfig(**sizes, num_hidden_layers=1))
    with pytest.raises(UnsupportedError, match="BertModel cannot be loaded by its own library"):
        ModelQuantizer().save_quantized(quantized(plain, dtype), tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    ModelQuantizer().save_quantized(plain, tmp_path / "saved")


def test_pipeline_comes_back_as_a_pipeline() -> None:
    from transformers.pipelines.base import Pipeline

    class Echo(Pipeline):
        def _sanitize_parameters(self, **kwargs: Any) -> Any:
            return {}, {}, {}

        def preprocess(self, inputs: Any, **kwargs: Any) -> Any:
            return {"input_ids": inputs}

        def _forward(self, inputs: Any, **kwargs: Any) -> Any:
            return self.model(**inputs)

        def postprocess(self, outputs: Any, **kwargs: Any) -> Any:
            return outputs.logits

    pipeline = Echo(model=gpt2(), task="echo", device="cpu")
    result = quantized(pipeline)
    assert type(result) is Echo and result is not pipeline
    assert type(pipeline.model.lm_head) is torch.nn.Linear
    assert_close(result(IDS), pipeline(IDS), "f16")
    assert quantized(pipeline, in_place=True) is pipeline
    assert type(pipeline.model.lm_head) is modules.PackedLinear


def test_optimize_model_memory_on_class_and_instance() -> None:
    for owner in (ModelQuantizer, ModelQuantizer("bf16")):
        model = Small()
        assert owner.optimize_model_memory(model) is model
        assert type(model.up) is modules.PackedLinear
    assert model.up.packed_dtype == "bf16"
    assert ModelQuantizer.optimize_model_memory(Small(), device="cpu") is not None


def test_matrix_of_the_core_checks_what_it_is_given() -> None:
    size = _core.packed_size("f16", 20, 3)
    panels = torch.zeros(size + 64, dtype=torch.uint8).numpy()
    matrix = _core.PackedMatrix("f16", 20, 3, panels[:size])
    with pytest.raises(ValueError, match=f"expected {size} bytes"):
        _core.PackedMatrix("f16", 20, 3, panels)
    with pytest.raises(ValueError, match="aligned to 64"):
        _core.PackedMatrix("f16", 20, 3, panels[1 : size + 1])
    with pytest.raises(ValueError, match="dtype: unknown value 'f7'"):
        _core.packed_size("f7", 1, 1)
    with pytest.raises(ValueError, match="positive size"):
        _core.packed_size("f16", 0, 3)
    with pytest.raises(ValueError, match="rows: 2 from 19 on, but the matrix has 20"):
        matrix.pack(19, np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="expected 3 columns, got 4"):
        matrix.pack(0, np.zeros((2, 4), np.float32))
    with pytest.raises(ValueError, match="indices: 20 at 1, expected 0 to 19"):
        matrix.rows(np.array([0, 20]))
    good = np.zeros((2, 3), np.float32), None, "none", np.zeros((2, 20), np.float32)
    for position, bad in [(0, good[3]), (1, np.zeros(19, np.float32)), (2, "sin"), (3, good[0])]:
        arguments: list[Any] = list(good)
        arguments[position] = bad
        with pytest.raises(ValueError):
            matrix.matmul(*arguments)
    eight_bits = torch.zeros(_core.packed_size("int8", 20, 3), dtype=torch.uint8).numpy()
    eight_bits.view(np.int32)[0] = 4  # outlier channel 3 of 3 inputs
    with pytest.raises(ValueError, match="an outlier channel that is not below k"):
        _core.PackedMatrix("int8", 20, 3, eight_bits)
    readonly = panels[:size].view()
    readonly.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        _core.PackedMatrix("f16", 20, 3, readonly).pack(0, good[0])
