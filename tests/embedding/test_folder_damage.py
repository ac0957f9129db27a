"""Files that lie, and files that change: refused by name, without much memory, never a crash."""

import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_folders import BertFolder, write_json
from safetensors.numpy import load_file, save_file

from ai_model_optimizations import EmbeddingModel, ModelFormatError, UnsupportedError
from ai_model_optimizations.embedding import lookup, packing, tensors

WORD = "embeddings.word_embeddings.weight"
UP = "encoder.layer.1.intermediate.dense.weight"


def edit_header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Rewrite the header of model.safetensors; the data behind it stays."""

    def edit(folder: Path) -> None:
        file = folder / "model.safetensors"
        content = file.read_bytes()
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        change(header)
        new = json.dumps(header).encode()
        file.write_bytes(len(new).to_bytes(8, "little") + new + content[8 + size :])

    return edit


def shift(header: dict[str, Any]) -> None:
    header[UP]["data_offsets"] = [offset + 4 for offset in header[UP]["data_offsets"]]


def overlap(header: dict[str, Any]) -> None:
    begin, _ = header[WORD]["data_offsets"]
    other = next(n for n in header if n not in (WORD, "__metadata__"))
    header[other]["data_offsets"] = [begin, begin + np.ptp(header[other]["data_offsets"]).item()]


def swap_shape(header: dict[str, Any]) -> None:
    header[UP]["shape"] = header[UP]["shape"][::-1]


def huge_header(folder: Path) -> None:
    with (folder / "model.safetensors").open("wb") as file:
        file.write((1 << 30).to_bytes(8, "little"))
        file.truncate(8 + (1 << 30))  # a hole: takes no room on the disk


def edit_json(file: str, **changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        value = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
        write_json(folder / file, value | changes)

    return edit


def shards(**changes: Any) -> Callable[[Path], None]:
    """Cut the weights into two files, and let the index say something else."""

    def edit(folder: Path) -> None:
        whole = load_file(str(folder / "model.safetensors"))
        (folder / "model.safetensors").unlink()
        names = sorted(whole)
        parts = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
        for file, part in parts.items():
            save_file({name: whole[name] for name in part}, str(folder / file))
        weight_map = {name: file for file, part in parts.items() for name in part}
        write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map | changes})

    return edit


def lose_shard(folder: Path) -> None:
    shards()(folder)
    (folder / "b.safetensors").unlink()


def doubled_tensor(folder: Path) -> None:
    shards()(folder)
    both = load_file(str(folder / "b.safetensors")) | {WORD: np.zeros(3, np.float32)}
    save_file(both, str(folder / "b.safetensors"))


def dense(**changes: Any) -> Callable[[Path], None]:
    """A Dense module behind the pooling."""

    def edit(folder: Path) -> None:
        weight = changes.pop("weight", np.ones((4, 36), np.float32))
        config = {"in_features": 36, "out_features": 4, "bias": False}
        write_json(folder / "2_Dense" / "config.json", config | changes)
        save_file({"linear.weight": weight}, str(folder / "2_Dense" / "model.safetensors"))
        kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense"}
        modules = [{"path": path, "type": f"x.{kind}"} for path, kind in kinds.items()]
        write_json(folder / "modules.json", modules)

    return edit


def dense_pickle(folder: Path) -> None:
    dense()(folder)
    (folder / "2_Dense" / "model.safetensors").rename(folder / "2_Dense" / "pytorch_model.bin")


def only_vocabulary(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "vocab.txt")


def both_towers(folder: Path) -> None:
    whole = load_file(str(folder / "model.safetensors"))
    towers = {f"{side}.{name}": whole[name].copy() for side in ("a", "b") for name in whole}
    save_file(towers, str(folder / "model.safetensors"))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "offsets": (edit_header(shift), "model.safetensors: not a valid safetensors file"),
    "overlap": (edit_header(overlap), "model.safetensors: not a valid safetensors file"),
    "dtype of another size": (
        edit_header(lambda h: h[UP].update(dtype="F64")),
        "model.safetensors: not a valid safetensors file",
    ),
    "dtype unknown": (
        edit_header(lambda h: h[UP].update(dtype="F33")),
        "model.safetensors: not a valid safetensors file",
    ),
    "dtype of the same size": (
        edit_header(lambda h: h[UP].update(dtype="I32")),
        f"tensor '{UP}' has dtype I32",
    ),
    "shape": (
        edit_header(swap_shape),
        rf"tensor '{UP}': expected shape \(50, 36\) from config.json, got \(36, 50\)",
    ),
    "shape too large": (
        edit_header(lambda h: h[UP].update(shape=[1 << 40, 1 << 40])),
        "model.safetensors: not a valid safetensors file",
    ),
    "shape negative": (
        edit_header(lambda h: h[UP].update(shape=[-50, -36])),
        "model.safetensors: not a valid safetensors file",
    ),
    "no entry": (edit_header(lambda h: h.pop(UP)), "not a valid safetensors file"),
    "header of 1 GB": (huge_header, "model.safetensors: not a valid safetensors file"),
    "vocabulary of 2 billion": (
        edit_json("config.json", vocab_size=2_000_000_000),
        rf"tensor '{WORD}': expected shape \(2000000000, 36\) from config.json",
    ),
    "inner size of 2 billion": (
        edit_json("config.json", intermediate_size=2_000_000_000),
        "intermediate.dense.weight': expected shape",
    ),
    "layers of 2 billion": (
        edit_json("config.json", num_hidden_layers=2_000_000_000),
        "missing tensor 'encoder.layer.1999999999.intermediate.dense.weight'",
    ),
    "heads beyond all numbers": (
        edit_json("config.json", num_attention_heads=10**30),
        "no multiple of",
    ),
    "epsilon a string": (edit_json("config.json", layer_norm_eps="1e-12"), "layer_norm_eps must"),
    "epsilon 0": (edit_json("config.json", layer_norm_eps=0.0), "layer_norm_eps must lie between"),
    "length infinite": (
        edit_json("sentence_bert_config.json", max_seq_length=float("inf")),
        "sentence_bert_config.json: not valid JSON: Infinity is no JSON number",
    ),
    "path out of the folder": (
        lambda folder: write_json(
            folder / "modules.json",
            [{"path": p, "type": f"x.{t}"} for p, t in (("..", "Transformer"), ("", "Pooling"))],
        ),
        "path must name a folder inside the model's, got '..'",
    ),
    "shard missing": (lose_shard, r"b.safetensors: the file is missing, model.safetensors.index"),
    "shard elsewhere": (shards(**{WORD: "../c.safetensors"}), "name of a file beside it"),
    "tensor in another shard": (shards(**{WORD: "b.safetensors"}), f"tensor '{WORD}' is missing"),
    "tensor in no shard": (shards(more="b.safetensors"), "tensor 'more' is missing"),
    "tensor in two shards": (doubled_tensor, f"tensor '{WORD}' stands in a.safetensors too"),
    "empty index": (
        lambda folder: (shards()(folder), write_json(folder / "model.safetensors.index.json", {})),
        "weight_map must be an object and not empty",
    ),
    "two models in one file": (both_towers, "2 tensors called 'embeddings.word_embeddings.weight'"),
    "Dense of another width": (dense(in_features=48), "in_features is 48, but .* have 36 elements"),
    "Dense weights of another shape": (
        dense(weight=np.ones((5, 36), np.float32)),
        r"tensor 'linear.weight': expected shape \(4, 36\)",
    ),
    "Dense with an infinity": (
        dense(weight=np.full((4, 36), np.inf, np.float32)),
        "tensor 'linear.weight': dense_0.weight .*value inf at index 0 is not finite",
    ),
    "Dense without its bias": (dense(bias=True), r"expected the tensors \['linear.bias', "),
    "Dense a pickle": (dense_pickle, "2_Dense.model.safetensors: .*pytorch_model.bin is a pickle"),
    "only vocab.txt": (only_vocabulary, "vocab.txt alone is not read: write it with"),
    "prompts a list": (
        edit_json("config_sentence_transformers.json", prompts=["a"]),
        "config_sentence_transformers.json: prompts must be an object of strings",
    ),
    "default prompt unknown": (
        edit_json("config_sentence_transformers.json", default_prompt_name="x"),
        "default_prompt_name 'x' is none of the prompts",
    ),
    "truncate_dim 0": (
        edit_json("config_sentence_transformers.json", truncate_dim=0),
        "truncate_dim must be a positive integer",
    ),
}

UNSUPPORTED: dict[str, tuple[Callable[[Path], object], str]] = {
    "activation of Dense": (dense(activation_function="torch.nn.Softmax"), "'torch.nn.Softmax'"),
    "code of Dense": (dense(activation_function="evil.nn.Tanh"), "'evil.nn.Tanh' is not supported"),
    "residual of Dense": (dense(use_residual=True), "use_residual is not supported"),
    "Dense on tokens": (dense(module_input_name="token_embeddings"), "module_input_name = 'token"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damage_is_named(small_path: Path, tmp_path: Path, case: str) -> None:
    damage, message = DAMAGES[case]
    folder = Path(shutil.copytree(small_path, tmp_path / "model"))
    damage(folder)
    tracemalloc.start()
    try:
        with pytest.raises(ModelFormatError, match=message):
            EmbeddingModel.load(folder, dtype="f16")
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def post_processor(**changes: Any) -> Callable[[Path], None]:
    """Special tokens that do not belong to the model."""

    def edit(folder: Path) -> None:
        value = json.loads((folder / "tokenizer.json").read_text())
        value["post_processor"].update(changes)
        write_json(folder / "tokenizer.json", value)

    return edit


#: Found by tests/fuzz: each ended in an exception of the operating system or a library.
FUZZED: dict[str, tuple[Callable[[Path], object], str]] = {
    "path longer than the system allows": (
        lambda folder: write_json(
            folder / "modules.json",
            [{"path": "", "type": "Transformer"}, {"path": "a" * 5000, "type": "Pooling"}],
        ),
        "path must name a folder inside the model's, got 'a{200}'",
    ),
    "special token beyond int32": (
        post_processor(sep=["[SEP]", 1 << 31]),
        "tokenizer.json: token id 2147483648 lies beyond",
    ),
    "prompt no text": (
        edit_json("config_sentence_transformers.json", prompts={"query": "\ud800"}),
        r"prompts\['query'\]: lone surrogate at position 0",
    ),
}


@pytest.mark.parametrize("case", FUZZED)
def test_what_the_fuzzer_found_is_refused(small_path: Path, tmp_path: Path, case: str) -> None:
    damage, message = FUZZED[case]
    folder = Path(shutil.copytree(small_path, tmp_path / "model"))
    damage(folder)
    with pytest.raises(ModelFormatError, match=message):
        EmbeddingModel.load(folder)


def test_padding_of_the_file_is_never_made(small_path: Path, tmp_path: Path) -> None:
    """A fixed length of 2^31 would end the process in the library's allocator."""
    folder = Path(shutil.copytree(small_path, tmp_path / "model"))
    value = json.loads((folder / "tokenizer.json").read_text())
    value["padding"]["strategy"] = {"Fixed": 1 << 31}
    write_json(folder / "tokenizer.json", value)
    assert EmbeddingModel.load(folder).count_tokens(["the file"]).tolist() == [4]


def test_a_post_processor_that_lies_about_its_length_is_named(
    small_path: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(small_path, tmp_path / "model"))
    value = json.loads((folder / "tokenizer.json").read_text())
    piece = {"Sequence": {"id": "A", "type_id": 0}}
    value["post_processor"] = {
        "type": "TemplateProcessing", "single": [piece, piece], "pair": [piece],
        "special_tokens": {},
    }  # fmt: skip
    write_json(folder / "tokenizer.json", value)
    model = EmbeddingModel.load(folder)
    with pytest.raises(ModelFormatError, match="adds more special tokens than it says: 80 tokens"):
        model.encode("the " * 40)


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_unsupported_is_refused_by_name(small_path: Path, tmp_path: Path, case: str) -> None:
    change, message = UNSUPPORTED[case]
    folder = Path(shutil.copytree(small_path, tmp_path / "model"))
    change(folder)
    with pytest.raises(UnsupportedError, match=message):
        EmbeddingModel.load(folder)


def test_the_error_of_an_overflow_says_what_to_do(small_path: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small_path, tmp_path / "model"))
    whole = load_file(str(folder / "model.safetensors"))
    whole[UP][0, 0] = 70_000.0
    save_file(whole, str(folder / "model.safetensors"))
    with pytest.raises(ModelFormatError, match=f"'{UP}': .*does not fit f16; load with dtype='bf1"):
        EmbeddingModel.load(folder, dtype="f16")
    assert np.isfinite(EmbeddingModel.load(folder, dtype="f32").encode("the file")).all()


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "1_Pooling/config.json"])
def test_a_file_that_changes_while_it_is_read_is_named(
    small_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    folder = Path(shutil.copytree(small_path, tmp_path / "model"))
    load = packing.load_encoder

    def load_and_change(*arguments: Any) -> Any:
        encoder = load(*arguments)
        os.utime(folder / file, (1, 1))
        return encoder

    monkeypatch.setattr(packing, "load_encoder", load_and_change)
    with pytest.raises(ModelFormatError, match=f"{file}: the file changed while the model was"):
        EmbeddingModel.load(folder)


def test_weights_that_shrink_while_they_are_read_are_named(
    small_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(small_path, tmp_path / "model"))
    read = tensors.TensorFile.read

    def shrink_and_read(file: tensors.TensorFile, name: str) -> Any:
        os.truncate(folder / "model.safetensors", 5000)
        return read(file, name)

    monkeypatch.setattr(tensors.TensorFile, "read", shrink_and_read)
    with pytest.raises(ModelFormatError, match="ends early; the file changed while it was read"):
        EmbeddingModel.load(folder)


def test_a_changed_folder_is_loaded_again(small_path: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small_path, tmp_path / "model"))
    first = EmbeddingModel.load(folder)
    assert EmbeddingModel.load(folder) is first
    edit_json("sentence_bert_config.json", max_seq_length=20)(folder)
    second = EmbeddingModel.load(folder)
    assert (first.max_seq_length, second.max_seq_length) == (48, 20)


def test_other_options_share_the_weights(small_path: Path) -> None:
    first = EmbeddingModel.load(small_path, dtype="f32", on_truncate="error")
    second = EmbeddingModel.load(small_path, dtype="f32", on_truncate="ignore")
    assert first is not second and first._encoder is second._encoder
    assert EmbeddingModel.load(small_path, dtype="f32", on_truncate="error") is first
    assert first.space_id == second.space_id


def test_space_depends_on_all_that_makes_the_vectors(tmp_path: Path) -> None:
    def space(name: str, *changes: Callable[[Path], object], **options: Any) -> str:
        folder = BertFolder().write(tmp_path / name)
        for change in changes:
            change(folder)
        return EmbeddingModel.load(folder, **options).space_id

    def retrained(folder: Path) -> None:
        whole = load_file(str(folder / "2_Dense" / "model.safetensors"))
        whole["linear.weight"][0, 0] = 2.0
        save_file(whole, str(folder / "2_Dense" / "model.safetensors"))

    base = space("base")
    prompted = edit_json("config_sentence_transformers.json", prompts={"query": "read "})
    assert base == space("prompted", prompted) == space("f32", dtype="f32")
    pooling = "1_Pooling/config.json"
    others = [
        space("lower", edit_json("sentence_bert_config.json", do_lower_case=True)),
        space("two", edit_json(pooling, pooling_mode_max_tokens=True)),
        space("prompt", edit_json(pooling, include_prompt=False)),
        space("shorter", truncate_dim=35),
        space("dense", dense()),
        space("retrained", dense(), retrained),
        space("linear", dense(activation_function="torch.nn.modules.linear.Identity")),
    ]
    assert len({base, *others}) == 8


def test_lookup_knows_revisions(
    small_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--someone--small"
    for commit in ("abc", "def"):
        shutil.copytree(small_path, cached / "snapshots" / commit)
    (cached / "refs" / "pr").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    (cached / "refs" / "v2").write_text("def")
    (cached / "refs" / "pr" / "1").write_text("def")

    def find(revision: str | None) -> str:
        return lookup.find_model("someone/small", revision=revision, download=False).name

    assert [find(r) for r in (None, "main", "v2", "pr/1", "def")] == ["abc", *["abc"], *["def"] * 3]
    loaded = EmbeddingModel.load("someone/small", revision="v2", local_files_only=True)
    assert loaded.path == cached / "snapshots" / "def"
    with pytest.raises(FileNotFoundError, match="with revision 'v3'"):
        EmbeddingModel.load("someone/small", revision="v3", local_files_only=True)
    # A package carries one version, which no name of a revision stands for.
    with pytest.raises(FileNotFoundError, match=r"not in .* with revision 'v3'$"):
        EmbeddingModel.load(lookup.DEFAULT_MODEL, revision="v3", local_files_only=True)
    with pytest.raises(ValueError, match="is local and has no revision 'v2'"):
        EmbeddingModel.load(small_path, revision="v2")
    for wrong in ("../../x", "/etc", ""):
        with pytest.raises(ValueError, match="names no branch, tag or commit"):
            find(wrong)


def test_the_hub_is_asked_for_the_revision(
    small_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="huggingface-hub is not installed")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    asked: list[tuple[str, Any]] = []

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        assert "*.bin" not in allow_patterns
        return str(small_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert EmbeddingModel.load("someone/small", revision="v2").path == small_path
    EmbeddingModel.load("someone/small")
    assert asked == [("someone/small", "v2"), ("someone/small", None)]
