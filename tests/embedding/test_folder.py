"""Model folders: what is damaged or not supported is named, before any wrong vector comes out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_folders import BertFolder, write_json
from safetensors.numpy import load_file, save_file

from ai_model_optimizations import (
    EmbeddingModel,
    ModelFormatError,
    ModelQuantizer,
    UnsupportedError,
)
from ai_model_optimizations.embedding import lookup


def edit_json(file: str, **changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        value = json.loads((folder / file).read_text())
        write_json(folder / file, value | changes)

    return edit


def edit_tensors(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(str(folder / "model.safetensors"))
        change(tensors)
        save_file(tensors, str(folder / "model.safetensors"))

    return edit


def remove(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).unlink()


def overwrite(file: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_bytes(content)


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def set_nan(tensors: dict[str, Any]) -> None:
    tensors["encoder.layer.1.output.dense.weight"][3, 4] = np.nan


def set_large(tensors: dict[str, Any]) -> None:
    tensors["embeddings.word_embeddings.weight"][0, 0] = 1e6


WORD = "embeddings.word_embeddings.weight"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (remove("config.json"), r"config\.json: the file is missing"),
    "config no JSON": (overwrite("config.json", b"{"), r"config\.json: not valid JSON"),
    "config no UTF-8": (overwrite("config.json", b"\xff\xfe\x00"), r"config\.json: not valid"),
    "config a list": (overwrite("config.json", b"[]"), "expected a JSON object, got list"),
    "size a string": (edit_json("config.json", hidden_size="36"), "hidden_size must be a positive"),
    "size missing": (edit_json("config.json", num_hidden_layers=None), "num_hidden_layers must be"),
    "heads do not divide": (edit_json("config.json", num_attention_heads=5), "no multiple of"),
    "modules an object": (overwrite("modules.json", b"{}"), "expected a list of objects"),
    "no pooling": (remove("1_Pooling/config.json"), r"1_Pooling.config\.json: the file is missing"),
    "pooling dimension": (
        edit_json("1_Pooling/config.json", word_embedding_dimension=48),
        "word_embedding_dimension is 48, but hidden_size is 36",
    ),
    "length not positive": (
        edit_json("sentence_bert_config.json", max_seq_length=0),
        "max_seq_length must be positive",
    ),
    "length no room": (
        edit_json("sentence_bert_config.json", max_seq_length=2),
        "2 special tokens leave no place in 2 tokens",
    ),
    "no weights": (remove("model.safetensors"), r"model\.safetensors: the file is missing$"),
    "only a pickle": (only_pickle, "pytorch_model.bin is a pickle, .* save_pretrained"),
    "truncated weights": (truncate, r"model\.safetensors: not a valid safetensors file"),
    "empty weights": (overwrite("model.safetensors", b""), "not a valid safetensors file"),
    "header too long": (
        overwrite("model.safetensors", (1 << 30).to_bytes(8, "little") + b"{}"),
        "not a valid safetensors file",
    ),
    "missing tensor": (
        edit_tensors(lambda t: t.pop("encoder.layer.1.intermediate.dense.bias")),
        "missing tensor: up.bias of layer 1",
    ),
    "extra tensor": (
        edit_tensors(lambda t: t.update({"encoder.layer.2.output.dense.bias": np.zeros(36)})),
        r"tensor 'encoder\.layer\.2\.output\.dense\.bias' has no place",
    ),
    "wrong shape": (edit_json("config.json", vocab_size=120), f"tensor '{WORD}': .*expected shape"),
    "integer weights": (
        edit_tensors(lambda t: t.update({WORD: t[WORD].astype(np.int32)})),
        "has dtype I32",
    ),
    "NaN": (edit_tensors(set_nan), "down.weight of layer 1: value nan .* is not finite"),
    "beyond f16": (edit_tensors(set_large), "1e.06 at index 0 does not fit f16"),
    "no tokenizer": (remove("tokenizer.json"), r"tokenizer\.json: the file is missing"),
    "tokenizer damaged": (overwrite("tokenizer.json", b"{}"), "not a valid tokenizer file"),
}

UNSUPPORTED: dict[str, tuple[Callable[[Path], object], str]] = {
    "another family": (edit_json("config.json", model_type="t5"), "model_type 't5' is not known"),
    "custom code": (edit_json("config.json", auto_map={"AutoModel": "x"}), "auto_map"),
    "decoder": (edit_json("config.json", is_decoder=True), "is_decoder = True"),
    "relative positions": (
        edit_json("config.json", position_embedding_type="relative_key"),
        "position_embedding_type",
    ),
    "activation": (edit_json("config.json", hidden_act="mish"), "hidden_act 'mish'"),
    "pooling": (
        edit_json("1_Pooling/config.json", pooling_mode="median"),
        "pooling mode .median. is not known",
    ),
    "another module": (
        lambda folder: write_json(
            folder / "modules.json",
            [{"path": p, "type": f"x.{p}"} for p in ("Transformer", "Pooling", "LSTM")],
        ),
        "modules .*LSTM.* are not supported",
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damage_is_named(small_path: Path, tmp_path: Path, case: str) -> None:
    damage, message = DAMAGES[case]
    folder = Path(shutil.copytree(small_path, tmp_path / "model"))
    damage(folder)
    with pytest.raises(ModelFormatError, match=message):
        EmbeddingModel.load(folder, dtype="f16")


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_unsupported_is_refused_by_name(small_path: Path, tmp_path: Path, case: str) -> None:
    change, message = UNSUPPORTED[case]
    folder = Path(shutil.copytree(small_path, tmp_path / "model"))
    change(folder)
    with pytest.raises(UnsupportedError, match=message):
        EmbeddingModel.load(folder)


def test_values_beyond_f16_load_as_bf16(small_path: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small_path, tmp_path / "model"))
    edit_tensors(set_large)(folder)
    assert np.isfinite(EmbeddingModel.load(folder, dtype="bf16").encode(["the file"])).all()


@pytest.mark.parametrize("prefix", ["bert.", "model."])
def test_prefixed_tensor_names_load(small_path: Path, tmp_path: Path, prefix: str) -> None:
    folder = BertFolder(prefix=prefix).write(tmp_path)
    expected = EmbeddingModel.load(small_path).encode("the file")
    np.testing.assert_array_equal(EmbeddingModel.load(folder).encode("the file"), expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_weights_of_other_float_types_load(small_path: Path, tmp_path: Path, dtype: type) -> None:
    folder = Path(shutil.copytree(small_path, tmp_path / "model"))
    edit_tensors(lambda t: t.update({k: v.astype(dtype) for k, v in t.items()}))(folder)
    got = EmbeddingModel.load(folder, dtype="f16").encode("the file")
    expected = EmbeddingModel.load(small_path, dtype="f16").encode("the file")
    np.testing.assert_allclose(got, expected, atol=2e-3)


def test_without_sentence_config_the_positions_limit(tmp_path: Path) -> None:
    folder = BertFolder(max_seq_length=None).write(tmp_path)
    assert EmbeddingModel.load(folder).max_seq_length == 64


@pytest.mark.parametrize(
    "name",
    ["x.onnx", "models/x.safetensors", "X.PT", "./x", "../x", "a/b/c", "/nowhere/x", "~/nowhere/x"],
)
@pytest.mark.parametrize("load", [EmbeddingModel.load, ModelQuantizer().quantize_model])
def test_the_hub_is_not_asked_for_a_missing_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, load: Callable[[str], object], name: str
) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="huggingface-hub is not installed")
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"no model folder or .* at .*{Path(name).name}$"):
        load(name)


def test_lookup_prefers_a_path_then_the_hub_cache(
    small_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--someone--small"
    shutil.copytree(small_path, cached / "snapshots" / "abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    assert lookup.find_model("someone/small") == cached / "snapshots" / "abc"
    assert lookup.find_model(small_path) == small_path


def test_lookup_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="there is no model folder or"):
        lookup.find_model(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="'someone/nothing': not a folder, not in"):
        lookup.find_model("someone/nothing", download=False)
    with pytest.raises(ValueError, match="name_or_path: expected a name or a path, got an empty"):
        lookup.find_model("")
    for wrong in (None, b"all-MiniLM-L6-v2", 3):
        with pytest.raises(TypeError, match="name_or_path: expected a str or a path, got"):
            lookup.find_model(wrong)  # type: ignore[arg-type]


def test_a_failed_download_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="huggingface-hub is not installed")

    def fail(*arguments: object, **options: object) -> None:
        raise OSError("no name\n  for the host")

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(FileNotFoundError, match=r"downloading failed: no name for the host$"):
        lookup.find_model("someone/nothing")
