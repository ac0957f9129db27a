"""Packed models: what is saved is what is loaded, mapped and shared; damage is named."""

import dataclasses
import gc
import json
import os
import stat
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_folders import BertFolder, write_json
from obstacles import closed_folder, no_room_for
from packed_fixtures import DATA, TEXT
from safetensors import safe_open
from safetensors.numpy import save_file

from ai_model_optimizations import EmbeddingModel, ModelFormatError, ModelQuantizer, _core
from ai_model_optimizations.embedding import packed_model
from ai_model_optimizations.embedding.folder import ModelFolder

TEXTS = ["read the file", "a list of values (3, 4)", "", "x", "time " * 40, "A server, in a TEST."]
DTYPES = ["f32", "f16", "bf16", "int8"]
#: The vectors that the files under tests/data gave when they were written.
EXPECTED = [0.0646, -0.3238, 0.0331, -0.0419, -0.1915, -0.0951]


@pytest.mark.parametrize("dtype", DTYPES)
def test_saved_model_is_the_same_model(small_path: Path, tmp_path: Path, dtype: str) -> None:
    model = EmbeddingModel.load(small_path, dtype=dtype)
    file = model.save(tmp_path / "saved")
    assert file == tmp_path / "saved" / "packed.safetensors"
    for path in (file.parent, file):
        packed = EmbeddingModel.load(path)
        np.testing.assert_array_equal(packed.encode(TEXTS), model.encode(TEXTS))
        assert packed.dtype == dtype and packed.space_id == model.space_id
        assert packed.max_seq_length == model.max_seq_length
        assert packed.normalizes == model.normalizes and packed.dimension == model.dimension
        assert packed.memory_bytes == model.memory_bytes
        huge = "read the file, " * 10_000
        np.testing.assert_array_equal(packed.encode(huge), model.encode(huge))


@pytest.mark.parametrize("pooling", ["cls_token", "max_tokens"])
def test_settings_survive(tmp_path: Path, pooling: str) -> None:
    source = BertFolder(pooling=pooling, normalize=False, max_seq_length=9).write(tmp_path / "a")
    model = EmbeddingModel.load(source, dtype="f16")
    model.save(tmp_path / "b")
    packed = EmbeddingModel.load(tmp_path / "b")
    np.testing.assert_array_equal(packed.encode(TEXTS), model.encode(TEXTS))
    assert not packed.normalizes and packed.max_seq_length == 9
    packed.save(tmp_path / "c")  # and again from the mapped one
    assert (tmp_path / "c/packed.safetensors").stat().st_size == (
        tmp_path / "b/packed.safetensors"
    ).stat().st_size


def test_everything_behind_the_layers_survives(tmp_path: Path) -> None:
    source = BertFolder(pooling="cls_token").write(tmp_path / "a")
    pooling = {"pooling_mode": ["cls", "max"], "include_prompt": False}
    write_json(source / "1_Pooling" / "config.json", pooling)
    write_json(source / "2_Dense" / "config.json", {"in_features": 72, "out_features": 11})
    tensors = {
        "linear.weight": np.random.default_rng(1).standard_normal((11, 72), dtype=np.float32),
        "linear.bias": np.ones(11, np.float32),
    }
    save_file(tensors, str(source / "2_Dense" / "model.safetensors"))
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense", "3": "Normalize"}
    write_json(source / "modules.json", [{"path": p, "type": k} for p, k in kinds.items()])
    settings = {"prompts": {"query": "read "}, "default_prompt_name": "query"}
    write_json(source / "config_sentence_transformers.json", settings)
    for truncate_dim in (None, 7):
        model = EmbeddingModel.load(source, dtype="f16", truncate_dim=truncate_dim)
        packed = EmbeddingModel.load(model.save(tmp_path / f"b{truncate_dim}"))
        assert packed.dimension == model.dimension == (truncate_dim or 11)
        assert packed.space_id == model.space_id and packed.prompts == model.prompts
        np.testing.assert_array_equal(packed.encode(TEXTS), model.encode(TEXTS))
        np.testing.assert_array_equal(
            packed.encode(TEXTS, prompt="write "), model.encode(TEXTS, prompt="write ")
        )
    assert not np.array_equal(model.encode("the file"), model.encode("the file", prompt=""))


def test_weights_are_mapped_and_stay_mapped_as_long_as_needed(
    small_path: Path, tmp_path: Path
) -> None:
    model = EmbeddingModel.load(small_path, dtype="f16")
    expected = model.encode(TEXTS)
    file = model.save(tmp_path / "saved")
    before = _core.memory_info()["live_bytes"]
    packed = EmbeddingModel.load(file)
    added = _core.memory_info()["live_bytes"] - before
    assert added < packed.memory_bytes / 5  # views of matrices, no weights
    view = packed._encoder.weight("qkv", 1)
    assert not view.flags.writeable and view.ctypes.data % 64 == 0
    copy = view.copy()
    file.unlink()
    np.testing.assert_array_equal(packed.encode(TEXTS), expected)
    del packed, model
    gc.collect()
    np.testing.assert_array_equal(view, copy)


def test_file_is_aligned_described_and_read_by_the_safetensors_library(
    small_path: Path, tmp_path: Path
) -> None:
    file = EmbeddingModel.load(small_path, dtype="bf16").save(tmp_path / "saved")
    head, start = header(file)
    assert start % 64 == 0
    for name, entry in head.items():
        if name != "__metadata__" and not name.startswith("padding"):
            assert entry["data_offsets"][0] % 64 == 0, name
    assert head["layers.1.qkv"]["dtype"] == "BF16"
    assert head["layers.1.qkv"]["shape"] == [7, 18, 16, 2]  # 108 x 36 in panels of 16
    with safe_open(str(file), framework="numpy") as tensors:
        assert tensors.get_tensor("embeddings.norm").dtype == np.float32
        metadata = tensors.metadata()
    assert metadata["layout_version"] == "1" and metadata["dtype"] == "bf16"
    assert json.loads(metadata["model"])["sizes"]["hidden"] == 36


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("version", range(1, _core.encoder_layout_version() + 1))
def test_files_of_every_layout_version_are_read(version: int, dtype: str) -> None:
    model = EmbeddingModel.load(DATA / f"packed_v{version}_{dtype}.safetensors")
    assert model.dtype == dtype
    tolerance = {"f16": 5e-4, "bf16": 4e-3}[dtype]
    np.testing.assert_allclose(model.encode(TEXT)[:6], EXPECTED, atol=tolerance)
    assert model.count_tokens(["the " * 40]).tolist() == [20]


def test_models_in_use_are_loaded_once_and_a_replaced_file_anew(
    small_path: Path, tmp_path: Path
) -> None:
    first = EmbeddingModel.load(small_path, dtype="f16")
    first.save(tmp_path / "saved")
    packed = EmbeddingModel.load(tmp_path / "saved")
    assert EmbeddingModel.load(tmp_path / "saved" / "packed.safetensors") is packed
    other = EmbeddingModel.load(BertFolder(seed=3).write(tmp_path / "other"), dtype="f16")
    other.save(tmp_path / "saved")
    np.testing.assert_array_equal(packed.encode(TEXTS), first.encode(TEXTS))
    again = EmbeddingModel.load(tmp_path / "saved")
    np.testing.assert_array_equal(again.encode(TEXTS), other.encode(TEXTS))


def test_dtype_of_a_packed_model_is_the_files(small_path: Path, tmp_path: Path) -> None:
    EmbeddingModel.load(small_path, dtype="f16").save(tmp_path / "saved")
    assert EmbeddingModel.load(tmp_path / "saved", dtype="f16").dtype == "f16"
    with pytest.raises(ValueError, match=r"dtype: .* holds f16, not bf16; use dtype='auto'"):
        EmbeddingModel.load(tmp_path / "saved", dtype="bf16")


def header(file: Path) -> tuple[dict[str, Any], int]:
    """The file's header, and where its data begins."""
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:start]), start


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Changes a file's header; the data stays."""

    def apply(file: Path) -> None:
        head, start = header(file)
        data = file.read_bytes()[start:]
        change(head)
        new = json.dumps(head).encode()
        new += b" " * (-(8 + len(new)) % 64)
        file.write_bytes(len(new).to_bytes(8, "little") + new + data)

    return apply


def edit_metadata(**changes: str | None) -> Callable[[Path], None]:
    def change(head: dict[str, Any]) -> None:
        merged = {**head["__metadata__"], **changes}
        head["__metadata__"] = {key: value for key, value in merged.items() if value is not None}

    return edit(change)


def edit_model(**changes: Any) -> Callable[[Path], None]:
    def change(head: dict[str, Any]) -> None:
        model = json.loads(head["__metadata__"]["model"])
        sizes = {**model["sizes"], **changes.pop("sizes", {})}
        head["__metadata__"]["model"] = json.dumps({**model, "sizes": sizes, **changes})

    return edit(change)


def edit_data(name: str, replacement: bytes) -> Callable[[Path], None]:
    def apply(file: Path) -> None:
        head, start = header(file)
        content = bytearray(file.read_bytes())
        begin = start + head[name]["data_offsets"][0]
        content[begin : begin + len(replacement)] = replacement
        file.write_bytes(content)

    return apply


def rename(old: str, new: str) -> Callable[[Path], None]:
    return edit(lambda head: head.update({new: head.pop(old)}))


def reshape(head: dict[str, Any]) -> None:
    head["embeddings.word"]["shape"].reverse()


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda f: f.write_bytes(f.read_bytes()[:-70]), "not a valid safetensors file"),
    "empty": (lambda f: f.write_bytes(b""), "not a valid safetensors file"),
    "not packed": (edit_metadata(format=None), "not a packed model"),
    "later layout": (
        edit_metadata(layout_version="99", created_by="7.0"),
        r"layout version 99, this package reads \d+; use the version .* \(7\.0\), or save",
    ),
    "no space": (edit_metadata(space_id=None), "the metadata has no 'space_id'"),
    "dense": (edit_model(dense=[[1, "2", "tanh"]]), r"dense must hold \[inputs, outputs, act"),
    "model no JSON": (edit_metadata(model="{"), "metadata 'model': "),
    "model a list": (edit_metadata(model="[]"), "metadata 'model' is no object"),
    "unknown dtype": (edit_metadata(dtype="f8"), "dtype: unknown value 'f8'"),
    "unknown family": (edit_model(family="t5"), "family 't5' .* is not known"),
    "setting": (edit_model(max_seq_length="9"), "max_seq_length must be int, got '9'"),
    "pooling": (edit_model(pooling="median"), "poolings: unknown value 'median'"),
    "too many layers": (edit_model(sizes={"layers": 1 << 30}), "layers in .* tensors"),
    "size a string": (edit_model(sizes={"hidden": "36"}), "metadata 'model': "),
    "other size": (edit_model(sizes={"vocabulary": 40}), "tensor 'embeddings.word': expected F16"),
    "missing tensor": (rename("layers.1.up", "layers.9.up"), "tensor 'layers.1.up' is missing"),
    "no tokenizer": (rename("tokenizer.json", "other"), "tensor 'tokenizer.json' is missing"),
    "other shape": (edit(reshape), r"tensor 'embeddings.word': expected F16 \(\d+, 36\), got"),
    "infinite bias": (
        edit_data("layers.0.up_bias", np.float32(np.inf).tobytes()),
        "tensor 'layers.0.up_bias': .* is not finite",
    ),
    "damaged weights": (edit_data("layers.0.qkv", b"\1\2\3"), "the checksum does not match"),
    "damaged tokenizer": (edit_data("tokenizer.json", b"[1"), "the checksum does not match"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damage_is_named(small_model: EmbeddingModel, tmp_path: Path, case: str) -> None:
    damage, message = DAMAGES[case]
    file = small_model.save(tmp_path / "saved")
    damage(file)
    with pytest.raises(ModelFormatError, match=message) as caught:
        EmbeddingModel.load(file.parent)
    assert str(file) in str(caught.value)


def test_a_safetensors_file_that_is_no_packed_model_is_refused(small_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=r"model\.safetensors: not a packed model"):
        EmbeddingModel.load(small_path / "model.safetensors")


def test_save_refuses_what_it_would_overwrite(small_model: EmbeddingModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError, match="is a file; expected a folder"):
        small_model.save(tmp_path / "file")
    with pytest.raises(FileExistsError, match=r"has other files in it \(file\)"):
        small_model.save(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_what_another_process_writes_or_left_does_not_keep_a_folder_from_being_saved_into(
    small_model: EmbeddingModel, tmp_path: Path
) -> None:
    (tmp_path / "packed.safetensors.tmp-1-2").write_bytes(b"half")
    assert EmbeddingModel.load(small_model.save(tmp_path)).space_id == small_model.space_id
    small_model.save(tmp_path)
    (tmp_path / "notes.tmp-1-2").write_text("x")
    with pytest.raises(FileExistsError, match="notes"):
        small_model.save(tmp_path)


def test_an_empty_path_is_not_the_current_folder(
    small_model: EmbeddingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="path: expected a path, got an empty string"):
        small_model.save("")
    with pytest.raises(ValueError, match="target: expected a path, got an empty string"):
        ModelQuantizer("f16").quantize_path(small_model.path, "")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_half_written(
    small_model: EmbeddingModel, tmp_path: Path
) -> None:
    with no_room_for(8192), pytest.raises(OSError, match=r"new.packed\.safetensors"):
        small_model.save(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    small_model.save(tmp_path / "old")
    with no_room_for(8192), pytest.raises(OSError, match=r"old.packed\.safetensors"):
        small_model.save(tmp_path / "old")
    assert len(list((tmp_path / "old").iterdir())) == 1
    EmbeddingModel.load(tmp_path / "old").encode("the file")


def test_a_read_only_folder_is_named(small_model: EmbeddingModel) -> None:
    with closed_folder() as folder, pytest.raises(PermissionError, match="saved"):
        small_model.save(folder / "saved")


def test_permissions_follow_the_umask(small_model: EmbeddingModel, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        file = small_model.save(tmp_path / "saved")
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/smaps_rollup")
def test_loading_a_packed_model_adds_little_private_memory(
    minilm: EmbeddingModel, tmp_path: Path
) -> None:
    minilm.save(tmp_path / "saved")
    script = f"""
from ai_model_optimizations import EmbeddingModel
def private():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))
before = private()
model = EmbeddingModel.load({str(tmp_path / "saved")!r})
print(private() - before)
"""
    command = [sys.executable, "-c", script]
    added = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    assert int(added) * 1024 < 10_000_000


def test_checksum_covers_every_tensor(small_model: EmbeddingModel, tmp_path: Path) -> None:
    """Its definition, from the file alone."""
    file = small_model.save(tmp_path / "saved")
    head, start = header(file)
    content, checksum = file.read_bytes(), 0
    for name, entry in head.items():
        if name == "__metadata__" or name.startswith("padding"):
            continue
        begin, end = (start + offset for offset in entry["data_offsets"])
        block = content[begin:end]
        for piece in (name.encode(), block[:256], block[-256:]):  # all are shorter than 256 KiB
            checksum = zlib.crc32(piece, checksum)
    assert head["__metadata__"]["checksum"] == f"{checksum:08x}"


def test_every_setting_of_a_folder_is_packed(small_path: Path, tmp_path: Path) -> None:
    """A field that is added to ModelFolder and not to the file would be lost by save."""
    model = EmbeddingModel.load(small_path, dtype="f16")
    packed = packed_model.read_parts(model.save(tmp_path / "saved")).folder
    own = {"path", "transformer", "weights", "shards", "state"}  # what is of files alone
    for field in dataclasses.fields(ModelFolder):
        if field.name not in own:
            assert getattr(packed, field.name) == getattr(model._folder, field.name), field.name
    assert set(packed_model._settings_of(packed)) == {
        *("pooling", "normalize", "include_prompt", "dense"),  # of head
        *("prompts", "default_prompt_name"),  # of prompts
        *("max_seq_length", "do_lower_case", "truncate_dim"),
    }
