"""A quantized SentenceTransformer is still one: every argument, every way to call it."""

from __future__ import annotations

import copy
import gc
import importlib
import json
import pickle
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ai_model_optimizations import (
    EmbeddingModel,
    ModelFormatError,
    ModelQuantizer,
    UnsupportedError,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "embedding"))

from model_folders import BertFolder, write_json

torch = pytest.importorskip("torch", reason="torch is not installed")
library = pytest.importorskip(
    "sentence_transformers", reason="sentence-transformers is not installed"
)
SentenceTransformer = library.SentenceTransformer
pytestmark = pytest.mark.filterwarnings("ignore")

TEXTS = [
    "How do I reset my password?",
    "no",
    "",
    "Die Größe der Datei beträgt 12 MB; naïve café.",
    "The quarterly report shows revenue of 4.2 million, " * 5,
    "no",
]
PROMPTS = {"query": "search query: ", "document": "passage: ", "none": ""}


def open_model(path: Path) -> Any:
    return SentenceTransformer(str(path), device="cpu")


@pytest.fixture(scope="module")
def plain(minilm_path: Path) -> Any:
    model = open_model(minilm_path)
    model.prompts = dict(PROMPTS)
    return model


@pytest.fixture(scope="module")
def model(plain: Any) -> Any:
    return ModelQuantizer("f16").quantize_model(plain)


@pytest.fixture(scope="module")
def small_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = BertFolder(hidden=32, heads=2, intermediate=48, normalize=False).write(
        tmp_path_factory.mktemp("models") / "small"
    )
    # What the library asks for and our loader does not.
    write_json(path / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer"})
    modules = json.loads((path / "modules.json").read_text())
    write_json(path / "modules.json", [{"name": str(m["idx"]), **m} for m in modules])
    return path


@pytest.fixture
def small(small_path: Path) -> Any:
    return open_model(small_path)


def least_cosine(ours: Any, theirs: Any) -> float:
    a, b = (np.atleast_2d(np.asarray(x, dtype=np.float64)) for x in (ours, theirs))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / norms).min())


def assert_same(ours: Any, theirs: Any, least: float = 0.99999) -> None:
    """Same types, shapes and dtypes, and nearly the same numbers."""
    assert type(ours) is type(theirs)
    if isinstance(theirs, dict):
        assert set(ours) == set(theirs)
        for key in ("token_embeddings", "sentence_embedding"):
            if ours[key].ndim == 2:
                real = theirs["attention_mask"].bool()
                assert_same(ours[key][real], theirs[key][real], least)
            else:
                assert_same(ours[key], theirs[key], least)
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other, least)
    else:
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        if theirs.size if isinstance(theirs, np.ndarray) else theirs.numel():
            assert least_cosine(ours, theirs) >= least


ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"batch_size": 2},
    {"show_progress_bar": True},
    {"show_progress_bar": False},
    {"prompt": "query: "},
    {"prompt": ""},
    {"prompt_name": "query"},
    {"prompt_name": "none"},
    {"prompt": "a ", "prompt_name": "query"},
    {"output_value": "sentence_embedding"},
    {"output_value": "token_embeddings"},
    {"output_value": None},
    {"convert_to_numpy": False},
    {"convert_to_tensor": True},
    {"convert_to_tensor": True, "convert_to_numpy": True},
    {"convert_to_tensor": False, "convert_to_numpy": False},
    {"normalize_embeddings": True},
    {"truncate_dim": 100},
    {"truncate_dim": 100, "normalize_embeddings": True},
    {"device": "cpu"},
    {"device": torch.device("cpu")},
    {"chunk_size": 2},
    {"task": "query"},
]


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
@pytest.mark.parametrize("inputs", [TEXTS[:4], TEXTS[0]], ids=["list", "str"])
def test_encode_takes_every_argument(
    plain: Any, model: Any, arguments: dict[str, Any], inputs: Any
) -> None:
    assert_same(model.encode(inputs, **arguments), plain.encode(inputs, **arguments))


@pytest.mark.parametrize("name", ["inputs", "sentences"])
def test_encode_takes_texts_by_name(plain: Any, model: Any, name: str) -> None:
    try:
        expected = plain.encode(**{name: TEXTS})
    except TypeError:
        pytest.skip(f"this version has no argument {name}")
    assert_same(model.encode(**{name: TEXTS}), expected)


@pytest.mark.parametrize("inputs", [tuple(TEXTS), np.array(TEXTS), []], ids=type)
def test_encode_takes_containers_of_texts(plain: Any, model: Any, inputs: Any) -> None:
    assert_same(model.encode(inputs), plain.encode(inputs))


@pytest.mark.parametrize("precision", ["float32", "int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize("tensor", [False, True])
def test_encode_takes_every_precision(plain: Any, model: Any, precision: str, tensor: bool) -> None:
    ours, theirs = (
        m.encode(TEXTS, precision=precision, convert_to_tensor=tensor) for m in (model, plain)
    )
    # A value at the edge of a bucket may fall to either side.
    assert_same(ours, theirs, 0.99 if "bin" in precision else 0.999)


def test_vectors_are_close(plain: Any, real_texts: Any) -> None:
    texts = [text[:300] for text in real_texts[::150]]
    expected = plain.encode(texts)
    for dtype, least in {"f16": 0.99999, "bf16": 0.9999}.items():
        quantizer = ModelQuantizer(dtype, min_cosine=0.999, verify_texts=TEXTS)
        ours = quantizer.quantize_model(plain)
        assert least_cosine(ours.encode(texts), expected) >= least
        assert quantizer.report is not None and quantizer.report.cosine is not None
        assert quantizer.report.cosine.texts == len(TEXTS)
        assert least <= quantizer.report.cosine.minimum <= quantizer.report.cosine.mean


def test_it_is_a_sentence_transformer(plain: Any, model: Any, minilm_path: Path) -> None:
    assert isinstance(model, SentenceTransformer) and isinstance(model, torch.nn.Module)
    assert model.device == torch.device("cpu") and model.max_seq_length == plain.max_seq_length
    assert model.get_sentence_embedding_dimension() == 384
    assert model.prompts == plain.prompts and model.prompts is not plain.prompts
    assert model.similarity_fn_name == plain.similarity_fn_name
    vectors = model.encode(TEXTS)
    torch.testing.assert_close(
        model.similarity(vectors, vectors), plain.similarity(vectors, vectors)
    )
    for name in ("encode_query", "encode_document"):
        assert_same(getattr(model, name)(TEXTS[0]), getattr(plain, name)(TEXTS[0]))
    for same in (model.eval(), model.half(), model.to("cpu"), model.cpu(), model.float()):
        assert same is model
    assert np.array_equal(model.encode(TEXTS), vectors)
    assert model.embedding_model.space_id == EmbeddingModel.load(minilm_path, "f16").space_id
    assert sum(1 for _ in model.parameters()) == 0


def test_moving_it_to_a_device_says_why_not(model: Any) -> None:
    for move in (lambda: model.to("meta"), lambda: model.encode(["a"], device="meta")):
        with pytest.raises(UnsupportedError, match="computes on the CPU and cannot be moved"):
            move()


def test_errors_are_those_of_the_library(plain: Any, model: Any) -> None:
    bad: list[dict[str, Any]] = [
        {"prompt_name": "unknown"}, {"precision": "int3"}, {"batch_size": 0}, {"typo": 1},
    ]  # fmt: skip
    for arguments in bad:
        errors = []
        for one in (plain, model):
            with pytest.raises(Exception) as caught:
                one.encode(["a"], **arguments)
            errors.append(caught)
        assert errors[0].type is errors[1].type


def test_the_modules_can_be_called(plain: Any, model: Any) -> None:
    texts = TEXTS[:4]
    tokenize = "preprocess" if hasattr(model, "preprocess") else "tokenize"
    with torch.no_grad():
        ours = model(getattr(model, tokenize)(texts))["sentence_embedding"]
        theirs = plain(getattr(plain, tokenize)(texts))["sentence_embedding"]
    assert_same(ours, theirs)
    assert_same(ours.numpy(), model.encode(texts), 0.9999999)


def test_settings_that_are_changed_later_count(small_path: Path) -> None:
    plain = open_model(small_path)
    model = ModelQuantizer("f16").quantize_model(plain)
    text = "the server read a file path to write the string list in time " * 3
    for change in ("length", "prompt", "dimension", "pooling"):
        for one in (plain, model):
            if change == "length":
                one.max_seq_length = 7
            elif change == "prompt":
                one.prompts, one.default_prompt_name = {"q": "value: "}, "q"
            elif change == "dimension":
                one.truncate_dim = 10
            else:
                one[1].include_prompt = False
        assert_same(model.encode([text, "a file"]), plain.encode([text, "a file"]))
    assert model.get_sentence_embedding_dimension() == 10
    model.max_seq_length = 0
    with pytest.raises(ValueError, match="max_seq_length: expected a positive number, got 0"):
        model.encode("text", prompt="")


def test_hooks_are_called(small: Any) -> None:
    model, calls = ModelQuantizer("f16").quantize_model(small), []
    expected = model.encode(["a file"])
    handle = model[1].register_forward_hook(lambda *args: calls.append(1))
    np.testing.assert_allclose(model.encode(["a file"]), expected, rtol=1e-6, atol=1e-6)
    assert calls == [1]
    handle.remove()
    model.append(torch.nn.Identity())
    np.testing.assert_allclose(model.encode(["a file"]), expected, rtol=1e-6, atol=1e-6)


@pytest.fixture
def with_dense(small: Any) -> Any:
    dense = importlib.import_module("sentence_transformers.models").Dense
    torch.manual_seed(0)
    layers = [dense(32, 20), dense(20, 12, bias=False, activation_function=torch.nn.Identity())]
    modules = [copy.deepcopy(small[0]), copy.deepcopy(small[1]), *layers]
    return SentenceTransformer(
        modules=modules, device="cpu", prompts={"q": "value: "}, default_prompt_name="q"
    )


@pytest.mark.parametrize("in_place", [False, True])
def test_dense_layers_and_prompts_go_along(with_dense: Any, in_place: bool, tmp_path: Path) -> None:
    texts = ["a file", "the list of a server", ""]
    wanted = {name: with_dense.encode(texts, prompt=name) for name in ("", "value: ")}
    quantizer = ModelQuantizer("f16")
    model = quantizer.quantize_model(with_dense, in_place=in_place)
    packed = model.embedding_model
    for prompt, expected in wanted.items():
        assert_same(model.encode(texts, prompt=prompt), expected)
        assert_same(packed.encode(texts, prompt=prompt), expected)
    assert_same(model.encode(texts), wanted["value: "])
    assert (packed.dimension, packed.default_prompt_name) == (12, "q")
    hook = model[2].register_forward_hook(lambda *args: None)  # module by module from here on
    assert_same(model.encode(texts), wanted["value: "])
    hook.remove()
    model.save(str(tmp_path / "packed"))
    assert_same(EmbeddingModel.load(tmp_path / "packed").encode(texts), wanted["value: "])
    assert_same(ModelQuantizer.dequantize(model).encode(texts), wanted["value: "])
    report = quantizer.report
    assert report is not None
    kept = sum(parameter.numel() * 4 for parameter in model.parameters())
    assert report.bytes_after == packed.memory_bytes + kept


def test_it_names_its_vector_space(small: Any, small_path: Path) -> None:
    model = ModelQuantizer().quantize_model(small)
    assert model.space_id == EmbeddingModel.load(small_path).space_id
    model.truncate_dim = 8
    assert model.space_id == EmbeddingModel.load(small_path, truncate_dim=8).space_id


def test_a_changed_weight_makes_another_space(small: Any, small_path: Path) -> None:
    source = EmbeddingModel.load(small_path, "f16").space_id
    quantizer = ModelQuantizer("f16")
    assert quantizer.quantize_model(small).embedding_model.space_id == source
    with torch.no_grad():
        next(small.parameters())[3, 4] += 1.0
    changed = quantizer.quantize_model(small).embedding_model.space_id
    assert changed != source
    assert quantizer.quantize_model(small).embedding_model.space_id == changed


def test_auto_takes_the_type_that_holds_every_value(small: Any) -> None:
    with torch.no_grad():
        next(small.parameters())[3, 4] = 1e5
    assert ModelQuantizer("auto").quantize_model(small).embedding_model.dtype == "bf16"


def test_a_layer_that_was_exchanged_is_packed_by_itself(small: Any) -> None:
    inner = next(iter(small[0]._modules.values()))
    inner.encoder.layer[1].intermediate.dense = torch.nn.Linear(32, 64)
    inner.encoder.layer[1].output.dense = torch.nn.Linear(64, 32)
    expected = small.encode(["a file"])
    quantizer = ModelQuantizer("f16")
    assert quantizer.quantize_model(small, in_place=True) is small
    assert least_cosine(small.encode(["a file"]), expected) >= 0.9999
    assert "not as config.json of such a model says" in str(quantizer.report)


def test_given_model_is_untouched(small: Any) -> None:
    before = copy.deepcopy(small.state_dict())
    model = ModelQuantizer("f16").quantize_model(small)
    model.max_seq_length = 5
    assert type(small) is SentenceTransformer and small.max_seq_length != 5
    assert all(torch.equal(small.state_dict()[name], before[name]) for name in before)


@pytest.mark.parametrize("verify", [None, ["the file", "a list"]])
def test_in_place_keeps_the_object_and_frees_the_weights(
    small: Any, verify: list[str] | None
) -> None:
    expected = small.encode(["a file"])
    gone = [weakref.ref(parameter) for parameter in small.parameters()]
    quantizer = ModelQuantizer("f16", verify_texts=verify)
    assert quantizer.quantize_model(small, in_place=True) is small
    gc.collect()
    assert not [ref for ref in gone if ref() is not None]
    assert least_cosine(small.encode(["a file"]), expected) >= 0.9999
    assert quantizer.report is not None
    assert quantizer.report.bytes_after == small.embedding_model.memory_bytes


def test_a_cosine_that_is_not_kept_leaves_the_model_alone(small: Any) -> None:
    expected = small.encode(["a file"])
    with pytest.raises(ValueError, match=r"min_cosine asks for 1\.0"):
        ModelQuantizer("bf16", min_cosine=1.0).quantize_model(small, in_place=True)
    assert np.array_equal(small.encode(["a file"]), expected)


def test_report_and_dry_run(plain: Any) -> None:
    quantizer = ModelQuantizer("f16")
    sizes = quantizer.quantize_model(plain, dry_run=True)
    model = quantizer.quantize_model(plain)
    report = quantizer.report
    assert report is not None and type(plain) is SentenceTransformer
    assert (sizes.bytes_before, sizes.bytes_after) == (report.bytes_before, report.bytes_after)
    assert report.bytes_after == model.embedding_model.memory_bytes
    assert report.saved >= 0.495
    removed = {tensor.name for tensor in report.of_action("removed")}
    assert {"pooler.dense.weight", "embeddings.position_ids"} <= removed
    assert all(tensor.sqnr_db > 60 for tensor in report.of_action("quantized"))
    assert report.rss_before and report.rss_after


def test_dequantize_gives_a_plain_one(small: Any) -> None:
    small.prompts = dict(PROMPTS)
    model = ModelQuantizer("f16").quantize_model(small)
    back = ModelQuantizer.dequantize(model)
    assert type(back) is SentenceTransformer and back.prompts == PROMPTS
    assert least_cosine(back.encode(TEXTS), model.encode(TEXTS)) >= 0.999999
    assert ModelQuantizer("f16").quantize_model(back) is not back


def test_quantized_already(model: Any) -> None:
    assert ModelQuantizer("f16").quantize_model(model) is model
    with pytest.raises(ValueError, match="quantized already, to f16"):
        ModelQuantizer("bf16").quantize_model(model)


def test_copies_share_the_weights_and_pickles_hold_them(small: Any) -> None:
    model = ModelQuantizer("f16").quantize_model(small)
    expected = model.encode(["a file", "the list"])
    duplicate = copy.deepcopy(model)
    assert duplicate.embedding_model is model.embedding_model
    content = pickle.dumps(model)
    other = pickle.loads(content)
    for one in (duplicate, other):
        assert np.array_equal(one.encode(["a file", "the list"]), expected)
    assert other.embedding_model.space_id == model.embedding_model.space_id


def test_pickles_of_a_packed_file_name_it(small: Any, tmp_path: Path) -> None:
    model = ModelQuantizer("f16").quantize_model(small)
    model.save(str(tmp_path / "packed"))
    packed = EmbeddingModel.load(tmp_path / "packed")
    texts = ["a file", "the list"]
    assert np.array_equal(packed.encode(texts), model.encode(texts))
    model[0]._modules[next(iter(model[0]._modules))].embedding_model = packed
    content = pickle.dumps(model)
    other = pickle.loads(content)
    assert other.embedding_model is packed  # one copy in a process
    assert np.array_equal(other.encode(texts), model.encode(texts))
    file = tmp_path / "packed" / "packed.safetensors"
    BertFolder(hidden=32, heads=2, seed=5).write(tmp_path / "other")
    file.unlink()
    EmbeddingModel.load(tmp_path / "other", "f16").save(tmp_path / "packed")
    with pytest.raises(ModelFormatError, match="another model lies here than when it was pickled"):
        pickle.loads(content)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="the packed model of this pickle is gone"):
        pickle.loads(content)


@pytest.fixture
def pool(small: Any) -> Iterator[tuple[Any, Any]]:
    model = ModelQuantizer("f16").quantize_model(small)
    pool = model.start_multi_process_pool(["cpu"])
    yield model, pool
    model.stop_multi_process_pool(pool)


@pytest.mark.slow  # each process imports torch
def test_processes_of_a_pool_give_the_same_vectors(pool: Any) -> None:
    model, processes = pool
    texts = ["a file", "the list", "in time", "to read", "a path"]
    expected = model.encode(texts, normalize_embeddings=True)
    got = model.encode(texts, pool=processes, chunk_size=2, normalize_embeddings=True)
    assert np.array_equal(got, expected)


def test_families_that_the_encoder_lacks_are_packed_module_by_module(
    small: Any,
) -> None:
    small.append(torch.nn.Identity())
    quantizer = ModelQuantizer("f16", verify_texts=["the file", "a list"])
    model = quantizer.quantize_model(small)
    assert isinstance(model, SentenceTransformer) and not hasattr(model, "embedding_model")
    assert least_cosine(model.encode(["a file"]), small.encode(["a file"])) >= 0.9999
    report = quantizer.report
    assert report is not None and report.cosine is not None and report.saved > 0.3
    assert "The C encoder does not run this model" in str(report)
    back = ModelQuantizer.dequantize(model)
    assert least_cosine(back.encode(["a file"]), model.encode(["a file"])) >= 0.99999


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e5])
def test_values_that_do_not_fit_stay_in_f32(small: Any, value: float) -> None:
    with torch.no_grad():
        name, parameter = next(
            (n, p) for n, p in small.named_parameters() if n.endswith("output.dense.weight")
        )
        parameter[1, 2] = value
    quantizer = ModelQuantizer("f16")
    quantizer.quantize_model(small, in_place=True)
    assert quantizer.report is not None
    kept = {tensor.name: tensor for tensor in quantizer.report.of_action("kept")}[name]
    assert kept.overflowed == int(np.isfinite(value)) and kept.dtype_after == "f32"


def test_skip_is_honoured(small: Any) -> None:
    quantizer = ModelQuantizer("f16", skip=r".*word_embeddings")
    model = quantizer.quantize_model(small)
    kept = [m for n, m in model.named_modules() if n.endswith("word_embeddings")]
    assert type(kept[0]) is torch.nn.Embedding
    assert "one type for all" in str(quantizer.report)


@pytest.mark.parametrize("part", ["a table", "the transformer", "the first module"])
def test_in_place_refuses_a_shared_model(small: Any, part: str) -> None:
    inner = next(iter(small[0]._modules.values()))
    other = torch.nn.Module()
    if part == "a table":
        other.part = inner.embeddings.word_embeddings
    else:  # of which nothing would be left for the other model
        other.part = inner if part == "the transformer" else small[0]
    with pytest.raises(ValueError, match="is shared with another model"):
        ModelQuantizer("f16").quantize_model(small, in_place=True)
    assert type(small) is SentenceTransformer
    assert small.encode("a file").shape == (32,)


def test_training_is_a_clear_error(small: Any) -> None:
    model = ModelQuantizer("f16").quantize_model(small)
    tokenize = "preprocess" if hasattr(model, "preprocess") else "tokenize"
    features = getattr(model, tokenize)(["a file"])
    with pytest.raises(UnsupportedError, match="cannot be trained"):
        model.train()(features)
    assert model.encode("a file").shape == (32,)  # encode goes back to evaluation, as theirs does
